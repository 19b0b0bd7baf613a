"""The files of the page: how they are served, and that what they say is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmesh.errors import ERRORS
from llmesh.gateway.page.routes import POLICY, page_routes

FILES = Path(__file__).parent.parent.parent / "llmesh/gateway/page/files"
SDK = Path(__file__).parent.parent.parent / "sdk/js"
WORDS = (FILES / "words.js").read_text()


def table(name: str) -> dict[str, str]:
    body = WORDS.partition(f"const {name} = {{")[2].partition("\n}\n")[0]
    return {word: text for word, _, text in re.findall(r"(\w+): (['\"])(.*?)(?<!\\)\2", body)}


@pytest.mark.parametrize("path", [route.path for route in page_routes()])
async def test_every_file_is_served_under_the_policy(client, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, await again.get_data()) == (304, b"")


async def test_a_foreign_host_does_not_get_it(client) -> None:
    assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 401


@pytest.mark.parametrize("path", ["/page/", "/page/..%2froutes.py", "/page/../routes.py", "/page/nothing.js"])
async def test_nothing_else_is_served(client, path: str) -> None:
    assert (await client.get(path)).status_code == 404


def test_it_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    assert "unsafe" not in POLICY
    page = (FILES / "index.html").read_text()
    assert not re.search(
        r"<style|\sstyle=|\son\w+=|https?://|javascript:|<script(?! type=\"module\" src=)", page
    )
    for path in FILES.rglob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()
        )


def test_its_client_is_the_sdk_itself() -> None:
    for path in (FILES / "sdk").iterdir():
        assert path.read_bytes() == (SDK / path.name).read_bytes()
    assert {path.name for path in (FILES / "sdk").iterdir()} == {path.name for path in SDK.glob("*.js")}


def test_both_languages_say_the_same() -> None:
    english, chinese = table("ENGLISH"), table("CHINESE")
    assert english.keys() == chinese.keys()
    for word, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[word])), word


def test_every_word_that_is_asked_for_is_there() -> None:
    words = table("ENGLISH")
    sources = [path.read_text() for path in FILES.glob("*.js")]
    asked = {word for text in sources for word in re.findall(r"say\('(\w+)'", text)}
    asked |= set(re.findall(r'data-say(?:-\w+)?="(\w+)"', (FILES / "index.html").read_text()))
    assert asked <= words.keys()


def test_every_error_has_its_next_step_in_chinese() -> None:
    steps = WORDS.partition("const STEPS = {")[2].partition("\n}\n")[0]
    assert {int(code) for code in re.findall(r"(\d{4}):", steps)} == set(ERRORS)
