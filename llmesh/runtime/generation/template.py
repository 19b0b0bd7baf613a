"""Chat templates of strangers, rendered with fuel.

jinja2's immutable sandbox keeps a template away from Python's insides; it does not keep it from
running for ever or filling the memory.  So every loop turn, call, filter and operator here burns
fuel by the size of what it makes, only functions with a bounded result are known, and between two
burns runs nothing but straight template code of bounded length.  The limit is the same on every
machine and needs no signals or threads; the deadline on top is for slow machines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmesh.core.encoding import Json
from llmesh.errors import ValidationFailed

__all__ = ["ChatTemplate"]

MOST_SOURCE = 64 << 10
FUEL = 64 << 20
SECONDS = 1.0
_MOST_RANGE = 10_000
_PART = 8
"""What walking over one entry of a container costs, against one character."""
_MOST_INDENT = 16

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "int", "items", "last",
    "length", "list", "lower", "map", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
        "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "title", "upper",
    )),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}  # fmt: skip


class ChatTemplate:
    """One compiled template.  Raises ValidationFailed where the source is not one."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        if len(source) > MOST_SOURCE:
            raise ValidationFailed(
                f"The chat template has {len(source)} characters, more than the {MOST_SOURCE} allowed."
            )
        self._special = dict(special)
        self._environment = _Environment(len(source))
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise ValidationFailed(f"The chat template does not compile: {_line(error)}") from None

    def render(self, messages: list[dict[str, str]]) -> str:
        """The text of a conversation whose next turn is the assistant's.

        Raises ValidationFailed where the template says so itself, fails, or runs out of fuel.
        """
        self._environment.refuel()
        found: list[str] = []
        try:
            for piece in self._template.generate(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special
            ):
                self._environment.burn(piece)
                found.append(piece)
        except ValidationFailed:
            raise
        except Exception as error:
            raise ValidationFailed(f"The chat template fails on these messages: {_line(error)}") from None
        return "".join(found)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}."


class _Generation(Extension):
    """`{% generation %}`, by which trainers mark the assistant's words: what is inside, as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own convention

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Burns fuel; `turn` is what one loop turn or macro costs, the most literal text it can put out."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, turn: int) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[_Generation, loopcontrols],
            finalize=self.burn,
        )
        self._turn = 64 + turn
        self._fuel = 0
        self._until = 0.0
        self.filters = {name: self._burning(self.filters[name]) for name in _FILTERS}
        self.filters |= {"turns": self._turns, "made": self.burn, "safe": str, "tojson": self._tojson}
        self.filters |= {"join": self._join, "replace": self._replace}
        self.globals = {
            "range": self._range,
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
        }

    def refuel(self) -> None:
        """Start a rendering."""
        self._fuel = FUEL
        self._until = time.monotonic() + SECONDS

    def burn(self, value: Any) -> Any:
        """Pay for a value that was made, and hand it on."""
        self.spend(self._size(value))
        return value

    def spend(self, amount: int) -> None:
        """Raises ValidationFailed where fuel or time has run out."""
        self._fuel -= amount + 16
        if self._fuel < 0 or time.monotonic() > self._until:
            raise ValidationFailed("The chat template makes too much of these messages, or takes too long.")

    def _size(self, value: Any) -> int:
        """What a value would be if every part of it were written out; fuel bounds the walk too."""
        total, parts = 0, [value]
        while parts and total <= self._fuel:
            part = parts.pop()
            if isinstance(part, str | bytes | range):
                total += len(part) + 1
                continue
            total += _PART
            if isinstance(part, bool):
                continue
            if isinstance(part, int):
                total += part.bit_length() >> 2
            elif isinstance(part, dict):
                parts.extend(part)
                parts.extend(part.values())
            elif isinstance(part, list | tuple | set):
                parts.extend(part)
        return total

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Sizes are known before anything is made."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the operator {operator} is not available")
        if operator == "*" and not isinstance(left, int | float):
            left, right = right, left
        if operator == "*" and not isinstance(right, int | float) and isinstance(left, int):
            self.spend(max(left, 0) * self._size(right))
        elif isinstance(left, int) and isinstance(right, int):
            self.spend((left.bit_length() + right.bit_length()) ** 2 >> 6)
        else:
            self.spend(self._size(left) + self._size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Only macros, the globals above, and methods with a bounded result."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        for kind, methods in _METHODS.items():
            if isinstance(owner, kind) and name in methods:
                return self._method(owner, name, obj, args, kwargs)
        of_loop = isinstance(obj, LoopContext) or isinstance(owner, LoopContext)
        if not of_loop and not isinstance(obj, Macro) and obj not in self.globals.values():
            raise SecurityError(f"{str(name)[:40] or 'this'} is not available")
        self.spend(self._turn)
        return self.burn(super().call(context, obj, *args, **kwargs))

    def _method(self, owner: Any, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if isinstance(owner, str) and name == "join":
            return self._join(args[0], owner)
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **kwargs)
        self.spend(self._size(owner))
        return self.burn(method(*args, **kwargs))

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        _meter(source)
        return super()._generate(source, name, filename, defer_init)

    def _burning(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def burning(*args: Any, **kwargs: Any) -> Any:
            self.spend(sum(map(self._size, args)))
            return self.burn(function(*args, **kwargs))

        if mark := getattr(function, "jinja_pass_arg", None):
            burning.jinja_pass_arg = mark  # type: ignore[attr-defined]
        return burning

    def _turns(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(self._turn)
            yield value

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        pieces: list[str] = []
        for value in values:
            one = self.getitem(value, attribute) if attribute is not None else value
            self.spend(self._size(one) + len(d))
            pieces.append(str(one))
        return d.join(pieces)

    def _replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old)
        self.spend(self._size(text) + (min(found, count) if count >= 0 else found) * len(new))
        return text.replace(old, new, count)

    def _range(self, *bounds: int) -> range:
        found = range(*bounds)
        if len(found) > _MOST_RANGE:
            raise SecurityError(f"a range of more than {_MOST_RANGE}")
        return found

    def _tojson(self, value: Json, indent: int | None = None, ensure_ascii: bool = False) -> str:
        if indent is not None and not 0 <= indent <= _MOST_INDENT:
            raise SecurityError("an indent out of bounds")
        found: str = self.burn(json.dumps(value, indent=indent, ensure_ascii=ensure_ascii))
        return found


def _meter(source: nodes.Node) -> None:
    """Loops count their turns, containers their contents, and `~` is a join, which knows its size."""
    for child in source.iter_child_nodes():
        _meter(child)
    if isinstance(source, nodes.For):
        source.iter = _filtered(source.iter, "turns")
    for name, value in source.iter_fields():
        if isinstance(value, list):
            setattr(source, name, [_metered(one) for one in value])
        else:
            setattr(source, name, _metered(value))


def _metered(node: Any) -> Any:
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "join")
    stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
    if isinstance(node, nodes.List | nodes.Dict | nodes.Tuple) and not stored:
        return _filtered(node, "made")
    return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _refuse(message: str) -> None:
    raise ValidationFailed(f"The chat template refuses these messages: {str(message)[:200]}")


def _strftime_now(form: str) -> str:
    """Llama's templates ask for the date; of other forms only short ones are answered."""
    if len(form) > 40 or any(c.isdigit() for c in form):
        raise SecurityError("such a form of date")
    return time.strftime(form)
