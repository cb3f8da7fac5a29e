"""The page at /, in a real browser: WASMETAL_REQUIRE_CHROMIUM=1 has these tests fail where there is no Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.serve.serving import Serving, serving, wait_for
from wasmetal.actor.program import ActorProgram
from wasmetal.models import Model
from wasmetal.packaged import guest
from wasmetal.serve.completion import Completion
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.keys import read_keys
from wasmetal.serve.limits import ServerLimits

expect.set_options(timeout=30_000)
KEY = "a key of sixteen characters, or more"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"desktop": (1280, 800), "phone": (360, 700)}
Opener = Callable[..., Page]

pytestmark = pytest.mark.skipif(
    not CHROMIUM and os.environ.get("WASMETAL_REQUIRE_CHROMIUM") != "1", reason="Chromium is not installed"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens the page. It must ask no other server, and say nothing on its console that is not expected."""
    contexts, asked, said = [], set[str](), list[str]()

    def opened(server: Serving, size: str = "desktop", *, errors: str = "$", **options: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.add(request.url.removeprefix(server.url)))
        page.on("console", lambda message: re.match(errors, message.text) or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert all(url.startswith("/") for url in asked)
    assert not said


def say(page: Page, text: str, **settings: str) -> None:
    """Send a message, with these settings."""
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    if settings:
        page.get_by_role("button", name="Settings").click()
        for name, value in settings.items():
            page.get_by_label(name.replace("_", " ")).fill(value)
        page.get_by_role("button", name="Done").click()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def ended(page: Page, tokens: int, answers: int = 1) -> None:
    """Wait until there are so many answers, the last with so many tokens."""
    expect(page.locator(".foot")).to_have_count(answers)
    expect(page.locator(".foot").last).to_contain_text(re.compile(rf"^{tokens} tokens · .*first after"))


def written(page: Page, least: int) -> None:
    """Wait until the answer that is being written has so many characters."""
    wait_for(lambda: len(page.locator(".busy .text").inner_text()) >= least)


def greedy(server: Serving, text: str, tokens: int) -> str:
    messages: Any = [{"role": "user", "content": text}]
    answer = server.client().chat.completions.create(
        model="tiny", messages=messages, max_tokens=tokens, temperature=0, top_p=0.95
    )
    return answer.choices[0].message.content or ""


def words(text: str) -> str:
    """A text without what Markdown and white space make of it."""
    return re.sub(r"[\s*`#\-+~.)\d]", "", text)


@pytest.mark.parametrize("size", SIZES)
def test_an_answer(served: Serving, open_page: Opener, size: str) -> None:
    page = open_page(served, size)
    say(page, "hello", Temperature="0", Most_tokens="12")
    ended(page, 12)
    assert words(page.locator(".answer .text").inner_text()) == words(greedy(served, "hello", 12))
    expect(page.get_by_role("status")).to_have_text("The answer is complete.")
    page.reload()  # the conversation and the settings are still there
    expect(page.locator(".messages > li")).to_have_count(2)
    say(page, "and then?")
    ended(page, 12, answers=2)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".messages > li")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask a model")).to_be_visible()


def test_a_guest_that_is_a_model(tiny: Model, open_page: Opener) -> None:
    guests = [GuestModel("voting", ActorProgram(guest("vote")), {"default": tiny})]
    with serving(Engine([tiny], ServerLimits(), guests=guests)) as server:
        page = open_page(server)
        expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")
        page.get_by_label("Model", exact=True).select_option("voting")
        say(page, "hello", Most_tokens="12")
        expect(page.get_by_role("status")).to_have_text("The answer is complete.")
        assert server.ask("/stats")[1]["ended"][0]["model"] == "voting"
        about = page.locator("#models li").filter(has_text="voting")
        expect(about).to_contain_text("A guest, program")
        expect(about).to_contain_text("tiny")


def test_stop_and_a_long_answer(served: Serving, open_page: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Completion._made
    monkeypatch.setattr(Completion, "_made", lambda each, tokens: made(each, tokens) or time.sleep(0.001 * tokens))
    page = open_page(served)

    def never_end(route: Route) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"logit_bias": {"0": -100, "2": -100}}))

    page.route("**/v1/chat/completions", never_end)
    say(page, "hello")
    written(page, 1500)
    below = "({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight"
    wait_for(lambda: page.locator("#scroll").evaluate(below) < 100)
    guest = page.get_by_role("article").filter(has_text="writing")
    expect(guest.get_by_role("img", name=re.compile(r"in 1 aperture shared with the device"))).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_for(lambda: not served.engine.tasks)
    expect(page.get_by_role("article").first).to_contain_text("stopped")
    expect(page.get_by_role("definition").first).to_have_text("0")  # bytes copied
    say(page, "hello")
    written(page, 50)
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")


def test_conversations_that_are_awake(tiny: Model, tmp_path: Path, open_page: Opener) -> None:
    with serving(Engine([tiny], ServerLimits(running=2, resident=2), actors=tmp_path / "actors")) as server:
        page = open_page(server, "phone")
        expect(page.locator("#awake")).to_have_text("0 of 2")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert server.ask("/v1/chat/completions", body, headers={"X-Wasmetal-Actor": "ann"})[0] == 200
        page.get_by_role("button", name="Live").click()
        expect(page.locator("#awake")).to_have_text("1 of 2")
        expect(page.get_by_text("Conversations awake")).to_be_visible()


def test_an_error_and_another_try(tiny: Model, open_page: Opener) -> None:
    with serving(Engine([tiny], ServerLimits(running=1, waiting=0))) as server:
        page = open_page(server, errors="Failed to load resource.*429")
        server.engine.admission.reserve()
        say(page, "hello", Most_tokens="5", Temperature="0")
        expect(page.get_by_role("alert")).to_contain_text("the server is busy")
        server.engine.admission.give_back()
        page.get_by_role("button", name="Try again").click()
        ended(page, 5)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key(tiny: Model, open_page: Opener) -> None:
    with serving(Engine([tiny]), keys=read_keys(KEY, None)) as server:
        page = open_page(server, errors="Failed to load resource.*401")
        expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        say(page, "hello", Most_tokens="5", Temperature="0")
        ended(page, 5)
        assert KEY not in str(page.context.storage_state())  # which has what outlives the tab


def test_what_an_answer_writes_stays_text(served: Serving, open_page: Opener) -> None:
    page = open_page(served)
    written = (
        '<img src=x onerror="alert(1)"> [a](http://example.com) ![b](http://example.com/b.png)\n\n```html\n<b>\n```'
    )
    found = page.evaluate(
        """async (text) => {
            const { markdown } = await import("/page/markdown.js");
            const box = document.createElement("div");
            box.append(markdown(text));
            return [box.textContent, [...box.querySelectorAll("*")].map((each) => each.localName)];
        }""",
        written,
    )
    assert found == [written.replace("\n\n```html\n", "").replace("\n```", ""), ["p", "pre", "code"]]


def test_what_a_screen_reader_finds(served: Serving, open_page: Opener) -> None:
    page = open_page(served, "phone")
    say(page, "hello", Temperature="0", Most_tokens="3")
    ended(page, 3)
    expect(page.locator("body")).to_match_aria_snapshot(
        """
        - link "Skip to the message"
        - banner:
          - heading "wasmetal" [level=1]
          - text: Model
          - combobox "Model":
            - option "tiny" [selected]
          - navigation "View":
            - button "Chat" [pressed]
            - button "Live"
          - button "New chat"
          - button "Settings"
        - main:
          - region "Conversation":
            - list "Messages":
              - listitem:
                - heading "You" [level=3]
                - text: hello
              - listitem:
                - heading "Answer" [level=3]
          - textbox "Message"
          - button "Send"
        - status: The answer is complete.
        """
    )
    page.get_by_role("button", name="Live").click()
    expect(page.get_by_role("complementary")).to_match_aria_snapshot(
        """
        - complementary "Live view":
          - region "Figures":
            - heading "Figures" [level=2]
            - paragraph: /tokens per second/
            - img "Tokens per second in the last minute"
            - term: Bytes copied
            - definition: "0"
            - meter "Device memory of models"
          - region "Guests":
            - heading "Guests" [level=2]
            - article:
              - heading /Guest \\d+ ended/ [level=3]
              - img /Linear memory of .* shared with the device/
            - list "Colours of the memory pictures"
          - region "Models":
            - heading "Models" [level=2]
            - list:
              - listitem:
                - heading "tiny" [level=3]
        """
    )
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"
    spoken = page.locator("#spoken").inner_text()
    assert words(spoken) == words(greedy(served, "hello", 3))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off_or_hard_to_read(served: Serving, open_page: Opener, size: str, scheme: Any) -> None:
    page = open_page(served, size, color_scheme=scheme, reduced_motion="reduce")
    say(page, "a" * 300, Temperature="0", Most_tokens="5")
    ended(page, 5)
    for view in ("Chat", "Live"):
        if size == "phone":
            page.get_by_role("button", name=view, exact=True).click()
        wide = "[...document.querySelectorAll('body *')].filter((each) => each.checkVisibility() && "
        wide += "!each.closest('.hidden, svg, pre, .skip') && each.getBoundingClientRect().right > innerWidth)"
        assert page.evaluate(f"{wide}.map((each) => each.outerHTML.slice(0, 80))") == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(17, 18, 21)" if scheme == "dark" else "rgb(245, 245, 242)"
    )
    assert page.evaluate("document.getAnimations().length") == 0
    for pair in (("--ink", "--back"), ("--soft", "--back"), ("--soft", "--sunken"), ("--accent", "--tint"),
                 ("--bad", "--bad-tint"), ("--on-accent", "--accent"), ("--good", "--surface")):  # fmt: skip
        assert contrast(*(page.evaluate(COLOUR, name) for name in pair)) >= 4.5, pair


COLOUR = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"


def contrast(one: str, other: str) -> float:
    """Of two colours such as #aabbcc, by WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)
