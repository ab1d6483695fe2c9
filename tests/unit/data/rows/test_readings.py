"""Which fields of a row are its prompt, its history and its responses."""

import pytest

from castor.data.rows.readings import unread_fields
from castor.data.rows.schemas import PreferenceRow, PromptRow, QARow, parse_prompt_row, parse_row
from castor.data.sources.record import RowError


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def reason_of(raw):
    with pytest.raises(RowError) as caught:
        parse_row(raw)
    return caught.value.reason


def test_pku_safe_rlhf_qa():
    category = {"Drugs": True, "Violence": False}
    raw = {"prompt": "p", "response": "a", "prompt_source": "x", "is_safe": False, "sha256": "0"}
    raw |= {"severity_level": 2, "harm_category": category}
    assert parse_row(raw) == QARow("p", "a", False, frozenset({"Drugs"}), 2)


def test_single_dimension():
    raw = {"prompt": "p", "response_0": "a", "response_1": "b", "prompt_source": "x", "better_response_id": 1}
    assert parse_row(raw | {"response_0_sha256": "0"}) == PreferenceRow("p", "a", "b", better_response_id=1)


@pytest.mark.parametrize(("extra", "prompt"), [("", "do it"), (None, "do it"), (" ", "do it"), ("this", "do it this")])
def test_alpaca(extra, prompt):
    raw = {"instruction": "do it", "input": extra, "output": "done", "text": "Below is ..."}
    assert parse_row(raw) == QARow(prompt, "done")


def test_hh_rlhf():
    said = "\n\nHuman: hi \n\nAssistant: hello\n\nHuman: why?\nreally\n\nAssistant:"
    row = parse_row({"chosen": f"{said} because", "rejected": f"{said} no\n\nreason"})
    assert (row.history, row.prompt) == ((("hi", "hello"),), "why?\nreally")
    assert (row.response_0, row.response_1, row.better_response_id) == ("because", "no\n\nreason", 0)
    assert row.safer_response_id is None


def test_hh_rlhf_rows_that_cannot_be_used():
    one, other = "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: c"
    assert reason_of({"chosen": one, "rejected": other}) == "different conversations"
    assert reason_of({"chosen": one, "rejected": one}) == "identical responses"
    assert reason_of({"chosen": one, "rejected": "\n\nHuman: a\n\nAssistant:"}) == "empty response"
    asking = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    assert reason_of({"chosen": asking, "rejected": asking}) == "malformed conversation"
    twice = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"
    assert reason_of({"chosen": twice, "rejected": one}) == "malformed conversation"
    assert reason_of({"chosen": "text", "rejected": "other"}) == "missing field"


def test_chat():
    raw = {"messages": messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), "is_safe": True}
    assert parse_row(raw) == QARow("c", "d", True, history=(("a", "b"),))
    assert parse_row({"messages": messages(("user", "a"))}) == PromptRow("a")
    assert parse_prompt_row({"messages": messages(("user", "a"))}).prompt == "a"
    assert parse_prompt_row({"prompt": messages(("user", "a"), ("assistant", "b"), ("user", "c"))}).key == (
        "a",
        "b",
        "c",
    )


def test_a_system_message_leads_the_first_prompt():
    turns = messages(("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert parse_row({"messages": turns}).history == (("Be kind.\n\na", "b"),)
    assert parse_row({"messages": messages(("system", ""), ("user", "a"), ("assistant", "b"))}) == QARow("a", "b")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "malformed conversation"),
        (messages(("assistant", "a")), "malformed conversation"),
        (messages(("user", "a"), ("tool", "b")), "malformed conversation"),
        (messages(("user", "a"), ("system", "s"), ("assistant", "b")), "malformed conversation"),
        (messages(("user", "a"), ("assistant", " ")), "empty response"),
        (messages(("user", " "), ("assistant", "b")), "empty prompt"),
        (messages(("user", ["image"]), ("assistant", "b")), "wrong type"),
        (messages(("user", [{"type": "text", "text": 3}]), ("assistant", "b")), "wrong type"),
        (messages(("user", []), ("assistant", "b")), "empty prompt"),
        (messages(("user", {"text": "a"}), ("assistant", "b")), "wrong type"),
        (messages(("user", "a"), ("assistant", None)), "missing field"),
        (messages((None, "a")), "wrong type"),
        (["a"], "wrong type"),
        ("a", "wrong type"),
    ],
)
def test_chats_that_cannot_be_used(value, reason):
    assert reason_of({"messages": value}) == reason


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
        {"prompt": "p", "chosen": messages(("assistant", "yes")), "rejected": messages(("assistant", "no"))},
        {
            "prompt": messages(("user", "p")),
            "chosen": messages(("assistant", "yes")),
            "rejected": messages(("assistant", "no")),
        },
        {
            "chosen": messages(("user", "p"), ("assistant", "yes")),
            "rejected": messages(("user", "p"), ("assistant", "no")),
        },
        {
            "prompt": "p",
            "chosen": messages(("user", "p"), ("assistant", "yes")),
            "rejected": messages(("user", "p"), ("assistant", "no")),
        },
    ],
)
def test_chosen_and_rejected(raw):
    assert parse_row(raw) == PreferenceRow("p", "yes", "no", better_response_id=0)


LONG = messages(("user", "a"), ("assistant", "b"), ("user", "p"))
EARLIER = (("a", "b"),)


@pytest.mark.parametrize("asked", [{"prompt": LONG}, {"messages": LONG}, {"prompt": "p", "history": [["a", "b"]]}])
def test_a_history_may_stand_before_the_prompt_of_every_kind_of_row(asked):
    answer, pair = QARow("p", "yes", history=EARLIER), PreferenceRow("p", "yes", "no", history=EARLIER)
    better = PreferenceRow("p", "yes", "no", better_response_id=0, history=EARLIER)
    assert parse_row(asked) == PromptRow("p", EARLIER)
    assert parse_row(asked | {"response": "yes"}) == answer
    assert parse_row(asked | {"response_0": "yes", "response_1": "no"}) == pair
    assert parse_row(asked | {"chosen": "yes", "rejected": "no"}) == better
    sides = {"chosen": messages(("assistant", "yes")), "rejected": messages(("assistant", "no"))}
    assert parse_row(asked | sides) == better
    assert parse_prompt_row(asked | {"response": ""}) == PromptRow("p", EARLIER)


def test_a_history_stands_before_an_instruction():
    row = parse_row({"instruction": "do", "input": "it", "output": "done", "history": [["a", "b"]]})
    assert row == QARow("do it", "done", history=EARLIER)
    assert parse_row({"instruction": "do", "input": "it", "output": None}) == PromptRow("do it")


def test_a_prompt_that_is_answered_already_takes_no_response():
    talk = messages(("user", "a"), ("assistant", "b"))
    assert reason_of({"prompt": talk, "response": "c"}) == "malformed conversation"
    assert parse_row({"prompt": talk}) == QARow("a", "b")


def test_a_whole_conversation_in_chosen_needs_no_prompt_beside_it():
    yes, no = (messages(("user", "p"), ("assistant", text)) for text in ("yes", "no"))
    talk = {"chosen": yes, "rejected": no}
    wanted = PreferenceRow("p", "yes", "no", better_response_id=0)
    assert parse_row(talk | {"prompt": messages(("user", "p"))}) == parse_row(talk) == wanted


TALK = {"messages": messages(("user", "p"), ("assistant", "yes"))}
ANSWER = {"prompt": "p", "response": "yes"}
ALPACA = {"instruction": "p", "output": "yes"}
SIDES = {"prompt": "p", "chosen": "yes", "rejected": "no"}
PAIR = {"prompt": "p", "response_0": "yes", "response_1": "no"}


@pytest.mark.parametrize(
    ("raw", "kind", "unread"),
    [
        (PAIR | SIDES | ANSWER, PreferenceRow, ("chosen, rejected, response", "response_0 and response_1")),
        (PAIR | TALK, PreferenceRow, ("messages", "response_0 and response_1")),
        (SIDES | ANSWER, PreferenceRow, ("response", "chosen and rejected")),
        (SIDES | TALK | ALPACA, PreferenceRow, ("output, messages", "chosen and rejected")),
        (ANSWER | TALK, QARow, ("messages", "response")),
        (TALK | ALPACA, QARow, ("output", "messages")),
        (ANSWER | {"response_0": "no"}, QARow, ("response_0", "response")),
        (ANSWER | {"messages": messages(("user", "p"))}, QARow, None),
        (ANSWER | {"chosen": True, "rejected": False}, QARow, None),
        (ANSWER | {"response_0": None, "response_1": float("nan"), "messages": None}, QARow, None),
        (TALK | {"prompt": "p"}, QARow, None),
        (PAIR, PreferenceRow, None),
        ({"prompt": "p"}, PromptRow, None),
    ],
)
def test_the_richest_reading_wins_and_the_others_are_named(raw, kind, unread):
    row = parse_row(raw)
    assert isinstance(row, kind)
    assert [answer.response for answer in row.answers()] == ["yes", "no"][: len(row.answers())]
    assert unread_fields(raw) == unread


@pytest.mark.parametrize("type_name", ["text", "input_text", "output_text"])
def test_content_given_as_parts_of_text(type_name):
    def part(words):
        return {"type": type_name, "text": words, "image_url": None}

    row = parse_row({"messages": messages(("user", [part("a"), part("b")]), ("assistant", [part("c")]))})
    assert row == QARow("a\nb", "c")


def test_a_part_that_is_no_text_is_named():
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(RowError, match=r"wrong type: messages\[0\].content\[1\] is a part of type 'image_url'; only"):
        parse_row({"messages": messages(("user", parts), ("assistant", "a"))})
