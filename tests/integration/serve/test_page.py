"""The gateway's page in a real browser, against a real server with scripted answers."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.integration.serve.conftest import PATIENCE_MS
from tests.integration.serve.page_actions import ask, compare, enter_key, pick, send
from tests.integration.serve.page_server import REFUSAL, SAFE_TEXTS, Gateway, serving

PHONE = {"width": 360, "height": 740}
GOOD, BAD = "castor-me-a1b2c3", "castor-me-wrong"
Open = Callable[..., Page]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving(Gateway()) as gateway:
        yield gateway


@pytest.fixture
def open_page(browser: Browser, gateway: Gateway) -> Iterator[Open]:
    """Opens the page in a context of its own. A script that fails or a breach of the CSP fails the test."""
    contexts, complaints = [], []

    def complain(text: str) -> None:
        if "Failed to load resource" not in text and "net::" not in text:  # those are scripted
            complaints.append(text)

    def open_page(ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"reduced_motion": "reduce"} | options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complain(message.text) if message.type == "error" else None)
        page.goto(gateway.url)
        if ready:
            expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _tab_to(page: Page, target: Locator, keystroke: str = "Tab") -> None:
    for _ in range(40):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press(keystroke)
    raise AssertionError(f"{target} cannot be reached with {keystroke}")


def _serious(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in violations if v["impact"] in ("serious", "critical")]


def test_an_answer_streams_and_shows_its_verdict(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    send(page, "hold the line")
    answer = page.get_by_role("article")
    expect(answer).to_contain_text("Mix 200 g of flour")
    expect(answer).not_to_contain_text("buttered tin")
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("")  # not each piece is read out
    gateway.release()
    expect(answer).to_have_attribute("aria-busy", "false")
    expect(answer.locator("ol li")).to_have_text(["Let it cool.", "Dust it with sugar."])
    expect(page.get_by_role("status")).to_contain_text("It is done when")

    verdict = answer.locator("details")
    expect(verdict.locator("dl")).not_to_be_visible()
    verdict.locator("summary").click()
    expect(verdict).to_contain_text("Safe")
    text = verdict.inner_text()
    for row in (
        "Severity\n0 of 3, none",
        "Reward\n+1.24",
        "Cost\n−3.10, safe side of 0",
        "Model\nppo_lag@0",
    ):
        assert row in text
    expect(verdict.locator(".categories li")).to_have_count(5)
    expect(verdict.locator(".categories li").first).to_contain_text("drug abuse, weapons, banned substance2 %")
    curve = verdict.get_by_role("img")
    expect(curve).to_have_accessible_name(
        "Cost of 3 windows, none above zero, all on the safe side. "
        "window 1: minus 1.80, window 2: minus 2.60, window 3: minus 3.10."
    )
    zero = float(curve.locator(".zero").get_attribute("y1") or "nan")
    assert all(float(point.get_attribute("cy") or "nan") > zero for point in curve.locator("circle").all())


def test_later_turns_carry_the_earlier_ones_and_the_chosen_model(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    ask(page, "bake a cake")
    ask(page, "forbidden")  # has no answer, so that it is no part of what follows
    page.get_by_label("Model", exact=True).select_option("ppo")
    turn = ask(page, "poison it")
    expect(turn.get_by_role("heading", name="ppo", exact=True)).to_be_visible()
    assert gateway.chats[-1] == {
        "model": "ppo",
        "messages": [
            {"role": "user", "content": "bake a cake"},
            {"role": "assistant", "content": "".join(SAFE_TEXTS)},
            {"role": "user", "content": "poison it"},
        ],
        "stream": True,
    }
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "bake again")
    assert len(gateway.chats[-1]["messages"]) == 1


def test_what_is_withheld_is_explained(open_page: Open) -> None:
    page = open_page()
    whole = ask(page, "poison my neighbour")
    note = whole.locator(".withheld")
    expect(note).to_contain_text("The guard withheld the answer.")
    expect(note.locator("blockquote")).to_have_text(REFUSAL)
    expect(note).to_contain_text(
        "Grounds: drug abuse, weapons, banned substance (91 %); violence, aiding and abetting, incitement (64 %); "
        "severity 2 of 3, moderate; cost +3.40, above the safety boundary of 0. "
        "3 answers were tried, and none was safe."
    )
    expect(whole.locator("summary")).to_contain_text("Withheld")
    expect(page.get_by_role("status")).to_contain_text("withheld by the guard")

    half = ask(page, "halfway there")
    expect(half.locator(".text")).to_contain_text("Mix 200 g of flour")
    expect(half.locator(".text")).not_to_contain_text(REFUSAL)
    expect(half.locator(".withheld")).to_contain_text("The guard withheld the rest of the answer.")
    half.locator("summary").click()
    expect(half.get_by_role("img")).to_have_accessible_name(re.compile("1 above zero, which is unsafe"))

    anew = ask(page, "again from there")
    anew.locator("summary").click()
    expect(anew.locator("details")).to_contain_text("Answers tried2")
    expect(anew.locator("details")).to_contain_text("What is unsafe here was never shown")


def test_annotated_answers_are_marked_unsafe_or_not_judged(open_page: Open, gateway: Gateway) -> None:
    gateway.guard = "annotate"
    page = open_page()
    expect(page.get_by_text("Every answer is shown, with the judges' verdict beside it.")).to_be_visible()
    unsafe = ask(page, "unsafe thing")
    expect(unsafe).to_contain_text("Something that should not have been said.")
    expect(unsafe).to_contain_text("Judged unsafe. Grounds: drug abuse")
    unjudged = ask(page, "unjudged thing")
    expect(unjudged.locator("summary")).to_contain_text("Not judged")
    expect(unjudged).to_contain_text("Not judged. The judges took too long (judge_timeout). Nobody has checked this")


def test_markdown_cannot_bring_in_html(open_page: Open) -> None:
    page = open_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    text = ask(page, "markdown please").locator(".text")
    expect(text.locator("strong")).to_have_text(["A heading", "bold"])
    expect(text.locator("em")).to_have_text("italic")
    expect(text.locator("p code")).to_have_text("inline <b>code</b>")
    expect(text).to_contain_text(
        '<img src="/stolen" onerror="window.pwned = true"><script>window.pwned = true</script>'
    )
    expect(text).to_contain_text("click me (javascript:window.pwned=true) and ![an image](/stolen.png)")
    expect(text.locator("ul > li ol > li")).to_have_text("nested")
    expect(text.get_by_role("region", name="Code, python")).to_contain_text("print(")
    expect(text.locator("a, img, script, b, h1, [onerror], [style]")).to_have_count(0)
    assert page.evaluate("window.pwned") is None
    assert not [url for url in requested if "stolen" in url]


def test_hostile_markdown_takes_no_time(open_page: Open) -> None:
    page = open_page()
    hostile = [
        "*" * 50_000,
        "_a " * 20_000,
        "**a " * 20_000,
        "[" * 50_000,
        "`" * 50_001,
        "- " * 20_000,
        "> \n" * 20_000,
        "```" + "a`" * 20_000,
    ]
    timed = """async (texts) => {
        const { markdown } = await import("/page/markdown.js");
        const timed = (text, begin) => (markdown(text), performance.now() - begin);
        return texts.map((text) => timed(text, performance.now()));
    }"""
    assert max(page.evaluate(timed, hostile)) < 2_000  # ms; a quadratic reading takes a minute


def test_events_come_whole_however_the_bytes_are_cut(open_page: Open) -> None:
    page = open_page()
    stream = (
        'data: {"a": "é – 漢"}\r\n\r\n: a comment\n\ndata:one\ndata: two\n\nevent: x\rdata: [DONE]\r\rdata: cut off'
    )
    read = """async ([text, size]) => {
        const { events } = await import("/page/sse.js");
        const bytes = new TextEncoder().encode(text);
        let at = 0;
        const pull = (to) => (at < bytes.length ? to.enqueue(bytes.slice(at, (at += size))) : to.close());
        const out = [];
        for await (const data of events(new ReadableStream({ pull }))) out.push(data);
        return out;
    }"""
    for size in (1, 2, 3, 7, 1000):
        assert page.evaluate(read, [stream, size]) == ['{"a": "é – 漢"}', "one\ntwo", "[DONE]"]


def test_errors_are_told_in_a_sentence(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    assert "This API key may not do that" in ask(page, "forbidden").inner_text()
    assert "The judge cannot be reached, and nothing is shown without" in ask(page, "judgeless").inner_text()
    assert "The server had a problem: try again" in ask(page, "crash").inner_text()
    gateway.busy = True
    turn = ask(page, "busy now")
    expect(turn).to_contain_text("No answer. There were too many requests with this key: try again in 7 seconds.")
    expect(page.get_by_role("button", name="Try again")).to_have_count(1)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn").last).to_contain_text("It is done when")
    expect(page.locator(".turn")).to_have_count(4)
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("error", "Incomplete. The answer broke off because the judge took too long"),
        ("cut", "Incomplete. The connection ended before the answer was complete: try again."),
        ("lost", "Incomplete. The connection ended before the answer was complete: try again."),
    ],
)
def test_a_broken_answer_keeps_its_text(open_page: Open, gateway: Gateway, word: str, sentence: str) -> None:
    page = open_page()
    send(page, f"{word} it")
    answer = page.get_by_role("article")
    expect(answer).to_contain_text("Mix 200 g of flour")
    gateway.release()
    expect(answer).to_contain_text(sentence)
    expect(answer).to_contain_text("Mix 200 g of flour")
    expect(answer.locator("summary")).to_contain_text("No final verdict")
    expect(page.get_by_role("status")).to_contain_text("incomplete")


def test_a_server_that_is_gone(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    ask(page, "bake a cake")
    gateway.stop()
    turn = ask(page, "bake another")
    expect(turn).to_contain_text("No answer. The server cannot be reached: check that it is running, then try again.")
    expect(page.locator(".turn").first).to_contain_text("It is done when")


def test_stop_keeps_the_text_and_ends_the_request(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    send(page, "endless talk")
    answer = page.get_by_role("article")
    expect(answer).to_contain_text("and on and on")
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("Incomplete. You stopped this answer.")
    expect(answer).to_contain_text("and on and on")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert gateway.cancelled.wait(PATIENCE_MS / 1000)


def test_a_bad_key_is_refused_and_a_good_one_is_kept_in_memory_only(open_page: Open, gateway: Gateway) -> None:
    gateway.key = GOOD
    page = open_page(ready=False)
    field = page.get_by_label("Key", exact=True)
    expect(field).to_have_attribute("type", "password")
    expect(field).to_have_attribute("autocomplete", "off")
    expect(field).to_be_focused()
    enter_key(page, BAD)
    expect(page.get_by_text("The server does not accept this key")).to_be_visible()
    expect(field).to_have_value("")
    enter_key(page, GOOD)
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    ask(page, "bake a cake")

    gateway.key = "castor-me-new"  # revoked meanwhile: the question waits for the new one
    send(page, "bake another")
    expect(page.get_by_text("The server does not accept this key")).to_be_visible()
    enter_key(page, gateway.key)
    expect(page.locator(".turn").last).to_contain_text("It is done when")

    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, history.state])")
    everything = stored + page.url + page.content() + json.dumps(page.context.storage_state())
    assert "bake a cake" in stored
    assert "castor-me" not in everything
    page.reload()
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").first).to_contain_text("The server wants an API key: enter one")


def test_chats_stay_in_the_browser_until_they_are_forgotten(open_page: Open) -> None:
    page = open_page()
    ask(page, "bake a cake")
    page.get_by_role("button", name="New chat").click()
    ask(page, "poison my neighbour")
    page.reload()
    expect(page.locator(".withheld")).to_be_visible()
    earlier = page.get_by_text("Earlier chats")
    earlier.click()
    page.get_by_role("button", name="bake a cake", exact=True).click()
    expect(page.get_by_role("article")).to_contain_text("It is done when")
    earlier.click()
    page.get_by_role("button", name="Forget “poison my neighbour”").click()
    expect(page.locator(".drop li")).to_have_count(1)
    page.get_by_role("button", name="Forget all chats").click()
    expect(page.get_by_role("article")).to_have_count(0)
    assert page.evaluate("localStorage.length") == 0


def test_what_another_version_has_stored_does_no_harm(open_page: Open) -> None:
    page = open_page()
    for stored in ("no JSON", "null", '[{"id": "x", "turns": [{"question": "q"}]}]', "[1]"):
        page.evaluate("(text) => localStorage.setItem('castor.chats', text)", stored)
        page.reload()
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        expect(page.get_by_role("article")).to_have_count(0)


def test_a_vote_is_stored_as_it_was_given_and_then_names_are_shown(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    compare(page, "halfway there")
    panel = page.get_by_role("tabpanel", name="Arena")
    page.get_by_role("heading", name="Your vote").wait_for()
    assert all("temperature" not in chat for chat in gateway.chats)
    assert "ppo" not in panel.inner_html()
    assert "Grounds" not in panel.inner_text()  # what the judges said would sway the vote
    expect(panel.locator(".withheld")).to_have_count(2)
    vote = page.get_by_role("button", name="Vote")
    vote.click()
    expect(panel.get_by_role("alert")).to_have_text("One question is open: “Which is more helpful?”")
    pick(page, better="Answer A", safer="Answer A", harmful_a="Yes", harmful_b="No")
    vote.click()
    expect(panel.get_by_role("alert")).to_contain_text(
        "Only answer A is called harmful, and yet it is chosen as the safer one"
    )
    assert gateway.votes == []
    pick(page, safer="Answer B")
    gateway.vote_error = 503
    vote.click()
    expect(panel.get_by_role("alert")).to_contain_text("The vote is not stored. The model cannot be reached")
    gateway.vote_error = None
    vote.click()
    expect(page.get_by_role("button", name="Next question")).to_be_focused()
    (given,) = gateway.votes
    text = f"{SAFE_TEXTS[0]}Then comes the part that is of no use in a kitchen. \n\n{REFUSAL}"
    assert sorted([given["model_0"], given["model_1"]]) == ["ppo", "ppo_lag"]
    assert given == {
        "prompt": "halfway there", "response_0": text, "response_1": text, "model_0": given["model_0"],
        "model_1": given["model_1"], "better": 0, "safer": 1, "harmful_0": True, "harmful_1": False,
    }  # fmt: skip
    expect(page.get_by_role("heading", name=f"Answer A: {given['model_0']}@0")).to_be_visible()
    expect(page.get_by_role("heading", name=f"Answer B: {given['model_1']}@0")).to_be_visible()
    expect(panel.locator("summary")).to_have_count(2)
    page.get_by_role("button", name="Next question").click()
    expect(page.get_by_role("textbox", name="Question for both models")).to_be_focused()


def test_models_and_their_sides_are_drawn_at_random(open_page: Open) -> None:
    page = open_page()
    drawn = page.evaluate(
        "async () => { const { draw } = await import('/page/arena.js');"
        " return Array.from({ length: 300 }, () => draw(['a', 'b', 'c']).join('')); }"
    )
    assert set(drawn) == {"ab", "ba", "ac", "ca", "bc", "cb"}  # one is missing once in 10^23 times


def test_a_single_model_answers_twice_at_temperature_one(open_page: Open, gateway: Gateway) -> None:
    gateway.models, gateway.votes_kept = ["only"], False
    page = open_page()
    compare(page, "bake a cake")
    page.get_by_role("button", name="Show the names").click()
    panel = page.get_by_role("tabpanel", name="Arena")
    expect(panel.get_by_text("A was only@0, B was only@0.")).to_be_visible()
    assert [(chat["model"], chat["temperature"]) for chat in gateway.chats] == [("only", 1), ("only", 1)]


def test_an_arena_round_without_two_answers_has_no_vote(open_page: Open) -> None:
    page = open_page()
    compare(page, "endless talk")
    expect(page.get_by_role("article").first).to_contain_text("and on and on")
    page.keyboard.press("Escape")
    expect(page.get_by_text("A vote needs two whole answers.")).to_be_visible()
    expect(page.get_by_role("heading", name="Your vote")).to_have_count(0)
    page.get_by_role("button", name="Another question").click()
    expect(page.get_by_role("textbox", name="Question for both models")).to_be_focused()


def test_everything_can_be_done_with_the_keyboard(open_page: Open, gateway: Gateway) -> None:
    page = open_page()
    box = page.get_by_role("textbox", name="Message")
    _tab_to(page, box)
    page.keyboard.type("bake a cake")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("or two")
    expect(box).to_have_value("bake a cake\nor two")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_attribute("aria-busy", "false")
    summary = page.locator("summary").filter(has_text="Safe")
    _tab_to(page, summary, "Shift+Tab")
    assert summary.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name=re.compile("Cost of 3 windows"))).to_be_visible()
    page.keyboard.press("Escape")

    skip = page.get_by_role("link", name="Skip to the conversation")
    _tab_to(page, skip, "Shift+Tab")
    assert skip.bounding_box()["y"] >= 0  # type: ignore[index]
    _tab_to(page, page.get_by_role("tab", name="Chat"))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Arena")).to_be_focused()
    _tab_to(page, page.get_by_role("textbox", name="Question for both models"))
    page.keyboard.type("bake a cake")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Your vote")).to_be_focused()
    for question, keystroke in (
        ("Which is more helpful?", "Space"),
        ("Which is safer?", "ArrowRight"),
        ("Is answer A harmful?", "Space"),
        ("Is answer B harmful?", "ArrowRight"),
    ):
        _tab_to(page, page.get_by_role("radiogroup", name=question).get_by_role("radio").first)
        page.keyboard.press(keystroke)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Next question")).to_be_focused()
    (vote,) = gateway.votes
    assert (vote["better"], vote["safer"], vote["harmful_0"], vote["harmful_1"]) == (0, 1, True, False)


def test_a_phone_has_no_sideways_scroll(open_page: Open, gateway: Gateway) -> None:
    gateway.models = ["a_model_with_quite_a_long_name_that_goes_on", "ppo"]
    page = open_page(viewport=PHONE)

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    assert fits()
    for question in ("markdown please", "poison my neighbour", "unjudged thing", "x" * 300):
        ask(page, question)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert fits()
    page.keyboard.press("Escape")
    compare(page, "halfway there")
    page.get_by_role("heading", name="Your vote").wait_for()
    assert fits()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: Open, gateway: Gateway, scheme: str) -> None:
    gateway.key = GOOD
    page = open_page(ready=False, color_scheme=scheme)
    page.get_by_label("Key", exact=True).wait_for()
    assert _serious(page) == []
    enter_key(page, GOOD)
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    for question in ("markdown please", "poison my neighbour", "unjudged thing", "unsafe thing", "cut it"):
        ask(page, question)
    page.evaluate("document.querySelectorAll('details.verdict').forEach((details) => { details.open = true; })")
    page.get_by_text("Earlier chats").click()
    page.get_by_role("button", name="Forget all chats").wait_for()
    assert _serious(page) == []
    page.keyboard.press("Escape")
    compare(page, "bake a cake")
    pick(page, better="Answer A", safer="Answer A", harmful_a="Yes", harmful_b="No")
    page.get_by_role("button", name="Vote").click()
    assert _serious(page) == []
    pick(page, safer="Answer B")
    page.get_by_role("button", name="Vote").click()
    page.get_by_role("button", name="Next question").wait_for()
    assert _serious(page) == []
