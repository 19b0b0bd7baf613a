"""Chat templates of strangers: what real ones use works, and hostile ones end soon and small."""

from __future__ import annotations

import tracemalloc

import pytest

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.template import ChatTemplate

HI = [{"role": "user", "content": " hi "}]


def render(source: str, messages: list[dict[str, str]] = HI) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content | trim }}{% endfor %}",
            "<s>[user]hi",
        ),
        (
            "{% if messages[0].role == 's' %}s{% else %}{{ messages[0]['content'] | trim }}{% endif %}",
            "hi",
        ),
        ("{{ 'a' ~ 1 ~ messages[0].content ~ eos_token }}", "a1 hi </s>"),
        (
            "{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}",
            "1",
        ),
        (
            "{% for m in messages %}{% if not loop.last %}x{% endif %}{{ loop.index0 }}{% endfor %}",
            "0",
        ),
        ("{% macro say(m) %}<{{ m.role }}>{% endmacro %}{{ say(messages[0]) }}", "<user>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": " hi "}'),
        ("{{ 'a</think>b'.split('</think>')[-1] }}", "b"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
        ("{{ messages | selectattr('role', 'equalto', 'system') | list | length }}", "0"),
        ("{{ messages[::-1][0].role }}{{ 'x' if add_generation_prompt }}", "userx"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{% for n in range(3) %}{% if n == 1 %}{% break %}{% endif %}{{ n }}{% endfor %}", "0"),
        ("{% if tools is defined and tools %}t{% endif %}{{ 'é你' | upper }}", "É你"),
        ("{{ 'a,b'.replace(',', ';') }}{{ '-' * 3 }}{{ [1] + [2] }}", "a;b---[1, 2]"),
        ("{% for m in messages %}\n  {{- m.role }}\n{% endfor %}\n", "user\n"),
    ],
)
def test_what_real_templates_use(source: str, text: str) -> None:
    assert render(source) == text


def test_a_template_may_refuse() -> None:
    with pytest.raises(ValidationFailed, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


DOUBLING = (
    "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
)
HOSTILE = [
    "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ 'a' * 1000000000 }}", "{{ 1000000000 * 'a' }}", "{{ [1] * 1000000000 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ 'a' | center(1000000000) }}", "{{ 'a'.ljust(1000000000) }}", "{{ 'a'.zfill(1000000000) }}",
    "{{ '%1000000000d' % 1 }}", "{{ '%1000000000d' | format(1) }}", "{{ '{:>1000000000}'.format(1) }}",
    "{{ messages | tojson(indent=1000000000) }}", "{{ range(1000000000) | list }}",
    "{{ ('a' * 1000000) | replace('', 'b' * 1000000) }}", "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(10000)) }}", "{{ range(10000) | join('a' * 100000) }}",
    DOUBLING.format(start="'aaaaaaaa'", step="ns.x ~ ns.x") + "{{ ns.x }}",
    DOUBLING.format(start="'aaaaaaaa'", step="ns.x + ns.x") + "{{ ns.x }}",
    DOUBLING.format(start="[1]", step="[ns.x, ns.x]") + "{{ ns.x }}",
    DOUBLING.format(start="[1]", step="[ns.x, ns.x]") + "{{ ns.x | string }}",
    DOUBLING.format(start="(1,)", step="(ns.x, ns.x)") + "{{ ns.x | tojson }}",
    DOUBLING.format(start="{}", step="{'a': ns.x, 'b': ns.x}") + "{{ ns.x }}",
    DOUBLING.format(start="{}", step="dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    ("{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% endfor %}{{ n.x | length }}"),
    "{% set ns = namespace(x=7) %}{% for i in range(10000) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set x %}{% for i in range(10000) %}" + "y" * 60_000 + "{% endfor %}{% endset %}",
    "{% set x = range(9999) | list %}{% for i in range(9999) %}{% set y = x | reverse | list %}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:50])
def test_hostile_templates_end_small(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValidationFailed, match="chat template"):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}",
        "{{ ''['__class__'] }}{{ ''.__class__() }}", "{{ 'a' | attr('__class__') }}", "{{ lipsum(n=100) }}",
        "{{ cycler('a') }}", "{{ 'x'.encode('idna') }}", "{% include 'x' %}", "{% import 'os' as os %}",
        "{{ raise_exception.__globals__['json'] }}", "{{ self.__init__.__globals__() }}",
        "{{ namespace.__init__.__globals__() }}", "{{ range.__self__() }}", "{{ strftime_now('%9999d') }}",
    ],
)  # fmt: skip
def test_nothing_of_python_is_in_reach(source: str) -> None:
    with pytest.raises(ValidationFailed, match="chat template"):
        render(source)


@pytest.mark.parametrize("source", ["{% if %}", "{{ " + "(" * 5000 + "1", "{% for a in b %}", "x" * 70_000])
def test_what_is_no_template_is_refused_at_once(source: str) -> None:
    with pytest.raises(ValidationFailed, match="chat template"):
        ChatTemplate(source, {})


def test_fuel_is_for_one_rendering() -> None:
    template = ChatTemplate("{% for n in range(9000) %}{% endfor %}{{ messages[0].content }}", {})
    assert [template.render(HI) for _ in range(60)] == [" hi "] * 60
