"""What a person does on the gateway's page, and the browser to do it in."""

import re

from playwright.sync_api import Locator, Page, expect


def send(page: Page, question: str) -> None:
    box = page.get_by_role("textbox", name="Message")
    box.fill(question)
    box.press("Enter")


def ask(page: Page, question: str) -> Locator:
    """The finished turn of a question."""
    send(page, question)
    turn = page.locator(".turn").last
    expect(turn.locator(".question")).to_have_text(re.compile(re.escape(question)))
    expect(turn.get_by_role("article")).to_have_attribute("aria-busy", "false")
    return turn


def compare(page: Page, question: str) -> None:
    page.get_by_role("tab", name="Arena").click()
    box = page.get_by_role("textbox", name="Question for both models")
    box.fill(question)
    box.press("Enter")


def pick(page: Page, **choices: str) -> None:
    questions = {
        "better": "Which is more helpful?",
        "safer": "Which is safer?",
        "harmful_a": "Is answer A harmful?",
        "harmful_b": "Is answer B harmful?",
    }
    for name, option in choices.items():
        page.get_by_role("radiogroup", name=questions[name]).get_by_label(option).check()


def enter_key(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
