"""The page in a real Chromium, on a real node with a peer, as people use it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import DEMO, TEXT, Mesh, NodeProcess
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>'
PATIENCE = 30_000.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)"),
]


@pytest.fixture(scope="module")
def provider(mesh: Mesh) -> NodeProcess:
    return mesh.start("provider", "--demo").ready(60)


@pytest.fixture(scope="module")
def node(mesh: Mesh, provider: NodeProcess) -> NodeProcess:
    """The node whose page is looked at; the models are its peer's."""
    started = mesh.start("consumer", "--bootstrap", provider.address).ready(60)
    started.infer()  # the offers have come
    return started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES.split())
        yield browser
        browser.close()


class Watched:
    """Pages, and what their consoles complained of."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.complaints: list[str] = []

    def open(self, url: str, locale: str = "en-US", **options: Any) -> Page:
        context = self._browser.new_context(locale=locale, **options)
        context.set_default_timeout(PATIENCE)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url)
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def pages(browser: Browser) -> Iterator[Watched]:
    expect.set_options(timeout=PATIENCE)
    watched = Watched(browser)
    yield watched
    watched.close()


def choose(page: Page, model: str) -> None:
    page.get_by_role("button", name=f"Try {model}", exact=True).click()


def make_key(node: NodeProcess) -> str:
    """A key that may run models, and nothing more."""
    command = [sys.executable, "-m", "llmesh.node", "keys", "create", "--name", "page"]
    options = ["--json", "--data-dir", str(node.folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["key"])


def test_a_look_a_question_a_story_and_what_is_told_of_them(
    pages: Watched, node: NodeProcess, provider: NodeProcess
) -> None:
    page = pages.open(node.url)
    expect(page.locator("#node-id")).to_have_text(node.id)
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator(".node.connected")).to_have_attribute("data-peer", provider.id)
    choose(page, DEMO)
    page.fill("#text", TEXT)
    page.click("#run")
    expect(page.locator("#output .label")).to_have_text("positive")
    expect(page.locator("#facts")).to_contain_text(provider.id)
    expect(page.locator("#facts")).to_contain_text("free")
    expect(page.locator("#events li").first).to_contain_text(f"{DEMO} answered by")
    choose(page, "gpt-mini")
    page.fill("#text", "给我讲个故事")
    page.fill("#tokens", "30")
    page.click("#run")
    expect(page.locator("#facts")).to_contain_text("→ 30")
    assert len(page.locator("#output").inner_text()) > 10
    expect(page.locator("#charts figure").first).to_contain_text("2")
    assert pages.complaints == []


def test_a_story_is_stopped(pages: Watched, node: NodeProcess) -> None:
    page = pages.open(node.url)
    choose(page, "gpt-mini")
    page.fill("#text", "给我讲个故事")
    page.fill("#tokens", "450")
    page.click("#run")
    expect(page.locator("#output")).not_to_be_empty()
    page.click("#stop")
    expect(page.locator("#output")).to_contain_text("Stopped.")
    expect(page.locator("#run")).to_be_enabled()


def test_language_and_theme_switch_and_stay(pages: Watched, node: NodeProcess) -> None:
    page = pages.open(node.url, color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.click("#theme")
    page.click("#language")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    expect(page.locator("#overview-title")).to_have_text("本节点")
    assert pages.complaints == []


def test_chinese_readers_get_chinese_and_a_readable_notice(pages: Watched, node: NodeProcess) -> None:
    page = pages.open(node.url, "zh-CN")
    page.get_by_role("button", name=f"试用 {DEMO}").click()
    page.fill("#text", "x")
    page.fill("#max-fee", "-4")
    page.click("#run")
    notice = page.locator(".notice")
    expect(notice).to_contain_text("ValidationFailed (代码 1004)")
    expect(notice).to_contain_text("按提示改正后再试")
    notice.get_by_role("button").click()
    expect(notice).to_have_count(0)


def test_the_keyboard_is_enough(pages: Watched, node: NodeProcess) -> None:
    page = pages.open(node.url)
    expect(page.locator("#model option")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#copy-id")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.type("sentiment")
    page.keyboard.press("Tab")
    page.keyboard.type("so good")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#output .label")).to_be_visible()


@pytest.mark.parametrize("width", [320, 375])
def test_nothing_is_wider_than_a_phone(pages: Watched, node: NodeProcess, width: int) -> None:
    page = pages.open(node.url, viewport={"width": width, "height": 640}, is_mobile=True, has_touch=True)
    expect(page.locator(".node.connected")).to_be_visible()
    expect(page.locator("#wallet dl")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    page.goto(f"{node.url}/docs")
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert pages.complaints == []


def test_hostile_words_of_a_provider_stay_words(pages: Watched, node: NodeProcess) -> None:
    offer = {
        **node.models()[0], "name": HOSTILE, "version": HOSTILE, "task": HOSTILE, "licence": HOSTILE,
        "description": HOSTILE,
    }  # fmt: skip
    page = pages.open("about:blank")

    def lie(route: Route) -> None:
        route.fulfill(json={"models": [offer]})

    page.route("**/api/v1/models?*", lie)
    page.goto(node.url)
    expect(page.locator("#offers th")).to_contain_text(HOSTILE)
    expect(page.locator("#model option")).to_contain_text(HOSTILE)
    assert page.locator("#offers img, #offers script, #model img").count() == 0
    assert page.title() == "LLMESH node"
    assert pages.complaints == []


def test_a_model_is_deployed_from_a_file(pages: Watched, node: NodeProcess, endless_model: Path) -> None:
    page = pages.open(node.url)
    page.set_input_files("#file", endless_model)
    expect(page.locator("#name")).to_have_value("endless")
    page.fill("#fee", "0.5")
    page.click("#send")
    expect(page.locator("#deployed")).to_contain_text("endless is served now as")
    expect(page.locator("#offers")).to_contain_text("endless")
    expect(page.locator("#events")).to_contain_text("This node serves endless: 0.5 MESH")
    dropped = page.evaluate_handle(
        "() => { const d = new DataTransfer(); d.items.add(new File(['x'], 'bad.onnx')); return d }"
    )
    page.fill("#name", "")
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator("#name")).to_have_value("bad")
    page.click("#send")
    expect(page.locator(".notice")).to_contain_text("1004")
    page.set_input_files("#file", endless_model)
    page.fill("#name", "again")
    page.click("#send")
    expect(page.locator("#deployed")).to_contain_text("again is served now as")
    expect(page.locator(".notice")).to_have_count(0)


def test_a_file_that_misses_does_not_leave_the_page(pages: Watched, node: NodeProcess) -> None:
    page = pages.open(node.url)
    kept = page.evaluate(
        "() => ['dragover', 'drop'].map((name) => document.querySelector('#models')"
        ".dispatchEvent(new DragEvent(name, { bubbles: true, cancelable: true })))"
    )
    assert kept == [False, False]


def test_a_lone_node_says_what_it_has_not(pages: Watched, mesh: Mesh) -> None:
    page = pages.open(mesh.start("lone").ready(60).url, locale="zh-CN")
    expect(page.locator("#model option")).to_have_text("还没有模型。可在下方部署一个。")
    expect(page.locator("#peer-facts")).to_contain_text("还没有其他节点")


def test_a_node_with_keys_asks_for_one(pages: Watched, mesh: Mesh) -> None:
    node = mesh.start("keyed", "--host", "0.0.0.0").ready(60)
    port = node.url.rsplit(":", 1)[1]
    key = make_key(node)
    page = pages.open(f"http://127.0.0.1:{port}")
    expect(page.locator("#key-why")).to_contain_text("llmesh keys create")
    page.fill("#key-text", "llmesh_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-why")).to_contain_text("does not know the key")
    page.fill("#key-text", key)
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#node-id")).to_have_text(node.id)
    expect(page.locator("#wallet")).to_contain_text("scope wallet")
    assert page.evaluate("() => JSON.stringify(localStorage)").find(key) < 0
    page.click("#key")
    expect(page.locator("#key-text")).to_be_visible()
