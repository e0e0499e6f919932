"""The chat page in Chromium, before a real server: what people see, whatever happens to the page and to the server."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.server import Server, serving
from trtstream.deploy.gateway.keys import add_key
from trtstream.deploy.serving.package import package_engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

pytestmark = [pytest.mark.triton, pytest.mark.slow]

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 60_000  # ms
HOSTILE = "<img src=x onerror='document.title = 1'><script>document.title = 2</script>"


@dataclass
class Restartable:
    """A server that comes back at the same address, with the same store."""

    engine: Path
    folder: Path
    port: int = 0  # a free one, until it has started
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def database(self) -> Path:
        return self.folder / "sessions.db"

    def start(self) -> None:
        options = ("--openai-port", str(self.port), "--session-store", f"sqlite:///{self.database}")
        limits = ("--max-tokens-limit", "10000000", "--drain-timeout", "1")
        self._server: Server = self._running.enter_context(serving(self.engine, self.folder / "log", *options, *limits))
        assert self._server.openai_url is not None
        self.port = int(self._server.openai_url.rpartition(":")[2])

    def kill(self) -> None:
        self._server.process.kill()
        self.stop()

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def site(endless_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    site = Restartable(endless_engine, tmp_path_factory.mktemp("site"))
    site.start()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(site: Restartable, browser: Browser) -> Iterator[Page]:
    with opened(browser, site.url) as page:
        yield page


@contextmanager
def opened(browser: Browser, url: str, model: str = "trtstream") -> Iterator[Page]:
    """The page for somebody new. In the end nothing in it may have failed, or broken its policy."""
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: failures.append(message.text) if "Policy" in message.text else None)
    page.goto(url)
    playwright.expect(page.locator("#model-name")).to_have_text(model)
    page.get_by_label("Temperature").fill("0")
    yield page
    page.close()
    assert failures == []


def ask(page: Page, text: str, tokens: int) -> None:
    page.get_by_label("Longest answer").fill(str(tokens))
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def await_end(page: Page) -> None:
    playwright.expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible(timeout=WAIT)
    playwright.expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")


def texts(page: Page) -> list[str]:
    return page.locator("#messages .text").all_text_contents()


def last_answer(page: Page) -> Locator:
    return page.locator("#messages .assistant").last


def await_text(page: Page, length: int) -> str:
    """The answer that is being made, once it is longer than that."""
    page.wait_for_function(
        "n => [...document.querySelectorAll('.assistant .text')].at(-1)?.textContent.length > n", arg=length
    )
    return last_answer(page).locator(".text").text_content() or ""


def test_a_conversation_past_its_window(page: Page) -> None:
    """What the model no longer sees is shaded; a reload, other versions and edits show the same."""
    page.get_by_role("textbox", name="System prompt").fill("")
    for number in range(3):
        ask(page, f"Question {number}", 30)
        await_end(page)
    states = page.locator("#messages .message").evaluate_all("all => all.map(node => node.dataset.seen)")
    assert states[0] == "part"  # its first tokens are the sinks
    assert "out" in states
    assert states[-1] == "in"
    shown = int(page.locator("#tokens").inner_text())
    assert shown > int(page.locator("#window-size").inner_text())
    assert int(page.locator("#out-size").inner_text()) == shown - 64
    before = texts(page)
    assert len(before) == 6
    page.reload()
    playwright.expect(page.locator("#messages .text")).to_have_count(6)
    assert texts(page) == before
    assert page.locator("#messages .message").evaluate_all("all => all.map(node => node.dataset.seen)") == states
    assert int(page.locator("#tokens").inner_text()) == shown

    page.get_by_label("Longest answer").fill("10")
    last_answer(page).get_by_role("button", name="Make another answer").click()
    playwright.expect(last_answer(page).locator(".count")).to_have_text("2 of 2")
    other = texts(page)
    assert other[:-1] == before[:-1]
    assert before[-1].startswith(other[-1])
    assert other[-1] != before[-1]
    last_answer(page).get_by_role("button", name="Earlier version").click()
    playwright.expect(last_answer(page).locator(".count")).to_have_text("1 of 2")
    assert texts(page) == before

    page.locator("#messages .user").nth(1).hover()
    page.locator("#messages .user").nth(1).get_by_role("button", name="Edit the message").click()
    page.get_by_label("The message, edited").fill("Something else")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#messages .text")).to_have_count(4)
    await_end(page)
    assert texts(page)[:3] == [*before[:2], "Something else"]
    page.get_by_role("button", name="New chat").click()
    playwright.expect(page.locator("#messages .text")).to_have_count(0)
    page.get_by_role("link", name="Question 0").click()
    playwright.expect(page.locator("#messages .text")).to_have_count(4)

    page.get_by_role("link", name="Question 0").hover()
    page.get_by_role("button", name="Delete “Question 0”").click()
    page.locator("#delete-dialog").get_by_role("button", name="Delete").click()
    playwright.expect(page.locator("#conversations li")).to_have_count(0)


def test_a_reload_in_the_middle_of_an_answer(page: Page) -> None:
    ask(page, "Hello", 1_000_000)
    begun = await_text(page, 30)
    page.reload()
    later = await_text(page, len(begun) + 30)
    assert later.startswith(begun)
    page.get_by_role("button", name="Stop the answer").click()
    await_end(page)
    playwright.expect(last_answer(page).locator(".note")).to_have_text("The answer was stopped.")
    stopped = texts(page)
    assert stopped[1].startswith(later)
    page.reload()
    playwright.expect(page.locator("#messages .text")).to_have_count(2)
    assert texts(page) == stopped
    ask(page, "Go on", 5)
    await_end(page)
    assert texts(page)[:3] == [*stopped, "Go on"]


def test_a_server_that_is_killed(site: Restartable, page: Page) -> None:
    """What was said is there again, and a question whose answer was lost can be asked again."""
    ask(page, "First", 20)
    await_end(page)
    first = texts(page)
    ask(page, "Second", 1_000_000)
    await_text(page, 20)
    site.kill()
    playwright.expect(page.get_by_role("status").first).to_contain_text("trying again")
    site.start()
    playwright.expect(page.get_by_role("alert")).to_contain_text("The server was stopped", timeout=WAIT)
    page.get_by_label("Longest answer").fill("10")
    page.get_by_role("button", name="Try again").click()
    await_end(page)
    assert texts(page)[:3] == [*first, "Second"]
    assert len(texts(page)) == 4
    page.reload()
    playwright.expect(page.locator("#messages .text")).to_have_count(4)


def test_script_text_stays_text(site: Restartable, page: Page) -> None:
    """In a question, in an answer, and in a title."""
    ask(page, HOSTILE, 5)
    await_end(page)
    with sqlite3.connect(site.database) as connection:
        connection.execute(
            "UPDATE turns SET text = ? WHERE created = (SELECT max(created) FROM turns)", [HOSTILE.encode()]
        )
    connection.close()
    page.reload()
    playwright.expect(page.locator("#messages .text")).to_have_text([HOSTILE, HOSTILE])
    assert page.locator("#messages img, #messages script, #conversations img").count() == 0
    assert page.title().startswith("<img")
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>'")


def test_what_is_read_again(counting_server: Server, browser: Browser) -> None:
    """The panel counts its tokens, and the message that they are from says so."""
    with opened(browser, f"http://{counting_server.openai_url}/") as page:
        page.get_by_label("Recall at most").fill("60")
        filler = [f"In the beginning was a word, the {number}th of many. " * 6 for number in range(2)]
        for text in ("Otto lives in Rome.", *filler, "Where does Otto live?"):
            ask(page, text, 100)
            await_end(page)
        again = page.locator("#messages .user .tag", has_text="read again for the last answer")
        for _ in range(2):
            playwright.expect(again).to_have_count(1)
            playwright.expect(page.locator("#messages .user").first).to_contain_text("read again for the last answer")
            assert 10 < int(page.locator("#again-size").inner_text()) <= 60
            page.reload()
            playwright.expect(page.locator("#messages .text")).to_have_count(8)


def test_two_tabs(site: Restartable, page: Page) -> None:
    """Each sees what is said in the other, and neither writes over what the other has kept."""
    ask(page, "From the first tab", 10)
    await_end(page)
    with page.expect_popup() as popup:
        page.evaluate("() => { open(location.href); }")
    other = popup.value
    other.set_default_timeout(WAIT)
    playwright.expect(other.locator("#messages .text")).to_have_count(2)

    ask(page, "Followed in the other", 1_000_000)
    await_text(page, 20)
    await_text(other, 20)
    page.get_by_role("button", name="Stop the answer").click()
    await_end(page)
    await_end(other)
    assert texts(other) == texts(page)
    assert len(texts(page)) == 4

    for tab in (page, other):
        tab.get_by_label("Longest answer").fill("1000000")
        last_answer(tab).get_by_role("button", name="Make another answer").click()
        playwright.expect(tab.get_by_role("button", name="Stop the answer")).to_be_visible()
        await_text(tab, 5)
    for tab in (page, other):
        tab.get_by_role("button", name="Stop the answer").click()
        await_end(tab)
    for tab in (page, other):
        tab.reload()
        playwright.expect(last_answer(tab).locator(".count")).to_contain_text("of 3")

    other.get_by_role("link", name="From the first tab").hover()
    other.get_by_role("button", name="Delete “From the first tab”").click()
    other.locator("#delete-dialog").get_by_role("button", name="Delete").click()
    playwright.expect(page.locator("#conversations li")).to_have_count(0)
    playwright.expect(page.locator("#messages .text")).to_have_count(0)
    other.close()


def test_a_tab_that_is_opened_before_the_first_token(page: Page) -> None:
    """It waits for the tab that has asked, and asks itself once that one is closed."""
    held: list[Route] = []
    page.route("**/v1/responses", lambda route: held.append(route))

    def opened_while_asking(text: str) -> tuple[Page, list[str]]:
        with page.expect_request("**/v1/responses"):
            ask(page, text, 10)
        with page.expect_popup() as popup:
            page.evaluate("() => { open(location.href); }")
        posts: list[str] = []
        popup.value.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
        popup.value.set_default_timeout(WAIT)
        playwright.expect(popup.value.get_by_role("button", name="Stop the answer")).to_be_visible()
        return popup.value, posts

    other, posts = opened_while_asking("Hello")
    held.pop().continue_()
    for tab in (page, other):
        await_end(tab)
    assert (texts(other), posts) == (texts(page), [])
    assert len(texts(page)) == 2
    other.close()
    other, posts = opened_while_asking("And now?")
    assert posts == []
    page.goto("about:blank")
    await_end(other)
    assert (len(texts(other)), len(posts)) == (4, 1)
    other.close()


def test_several_models(endless_engine: Path, tmp_path: Path, browser: Browser) -> None:
    """A new conversation is with the one that is chosen, and stays with it."""
    for name in ("large", "small"):
        package_engine(endless_engine, tmp_path / "repository", name)
    store = f"sqlite:///{tmp_path}/sessions.db"
    with (
        serving(tmp_path / "repository", tmp_path / "log", "--openai-port", "0", "--session-store", store) as server,
        opened(browser, f"http://{server.openai_url}/", model="") as page,
    ):
        choice, name = page.get_by_label("Model", exact=True), page.locator("#model-name")
        playwright.expect(choice.locator("option")).to_have_text(["large", "small"])
        choice.select_option("small")
        for text, chosen in (("Hello", "small"), ("Go on", "large")):
            with page.expect_request("**/v1/responses") as request:
                ask(page, text, 5)
            assert request.value.post_data_json["model"] == "small"
            await_end(page)
            playwright.expect(choice).to_be_hidden()
            playwright.expect(name).to_have_text("small")
            page.get_by_role("button", name="New chat").click()
            playwright.expect(choice).to_have_value(chosen)
            choice.select_option("large")
            page.get_by_role("link", name="Hello").click()
            playwright.expect(name).to_have_text("small")
            playwright.expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_focused()
        playwright.expect(page.locator("#messages .text")).to_have_count(4)


def test_what_is_read_to_those_who_do_not_see(page: Page) -> None:
    """The whole answer once it is complete, and not each of its tokens."""
    ask(page, "Hello", 10)
    await_end(page)
    answer = last_answer(page).locator(".text").text_content()
    playwright.expect(page.locator("#told")).to_have_text(f"Answer: {answer}")
    assert page.locator("#messages").get_attribute("aria-live") is None
    assert page.get_by_role("list", name="Messages").count() == 1


def test_a_key_is_asked_for(endless_engine: Path, tmp_path: Path, browser: Browser) -> None:
    """Until it is one that the gateway knows; the browser then keeps it."""
    keys = tmp_path / "keys.json"
    _, secret = add_key(keys, "acme")
    options = ("--openai-port", "0", "--api-key-file", str(keys))
    with serving(endless_engine, tmp_path / "log", *options) as server:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"http://{server.openai_url}/")
        field = page.locator("#key")
        for typed in ("sk-trt-wrong", secret):
            playwright.expect(field).to_be_focused()
            field.fill(typed)
            with page.expect_response("**/v1/models"):
                page.keyboard.press("Enter")
        playwright.expect(page.locator("#model-name")).to_have_text("trtstream")
        ask(page, "Hello", 10)
        await_end(page)
        page.reload()
        playwright.expect(page.locator("#model-name")).to_have_text("trtstream")
        playwright.expect(page.locator("#key-dialog")).to_be_hidden()
        page.close()
