"""Rows of other families, brought to the field names of PKU-SafeRLHF and BeaverTails."""

import pytest

from castor.data.rows.schemas import PreferenceRow, QARow, detect_schema, parse_preference, parse_prompt_row, parse_qa
from castor.data.sources.record import RowError


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def reason_of(raw):
    with pytest.raises(RowError) as caught:
        (parse_preference if detect_schema(raw) == "preference" else parse_qa)(raw)
    return caught.value.reason


def test_pku_safe_rlhf_qa():
    category = {"Drugs": True, "Violence": False}
    raw = {"prompt": "p", "response": "a", "prompt_source": "x", "is_safe": False, "sha256": "0"}
    raw |= {"severity_level": 2, "harm_category": category}
    assert parse_qa(raw) == QARow("p", "a", False, frozenset({"Drugs"}), 2)


def test_single_dimension():
    raw = {"prompt": "p", "response_0": "a", "response_1": "b", "prompt_source": "x", "better_response_id": 1}
    assert parse_preference(raw | {"response_0_sha256": "0"}) == PreferenceRow("p", "a", "b", better_response_id=1)


@pytest.mark.parametrize(("extra", "prompt"), [("", "do it"), (None, "do it"), (" ", "do it"), ("this", "do it this")])
def test_alpaca(extra, prompt):
    raw = {"instruction": "do it", "input": extra, "output": "done", "text": "Below is ..."}
    assert parse_qa(raw) == QARow(prompt, "done")


def test_hh_rlhf():
    said = "\n\nHuman: hi \n\nAssistant: hello\n\nHuman: why?\nreally\n\nAssistant:"
    row = parse_preference({"chosen": f"{said} because", "rejected": f"{said} no\n\nreason"})
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
    assert parse_qa(raw) == QARow("c", "d", True, history=(("a", "b"),))
    with pytest.raises(RowError, match="neither response nor"):
        detect_schema({"messages": messages(("user", "a"))})
    assert parse_prompt_row({"messages": messages(("user", "a"))}).prompt == "a"
    assert parse_prompt_row({"prompt": messages(("user", "a"), ("assistant", "b"), ("user", "c"))}).key == (
        "a",
        "b",
        "c",
    )


def test_a_system_message_leads_the_first_prompt():
    turns = messages(("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert parse_qa({"messages": turns}).history == (("Be kind.\n\na", "b"),)
    assert parse_qa({"messages": messages(("system", ""), ("user", "a"), ("assistant", "b"))}) == QARow("a", "b")


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
    assert parse_preference(raw) == PreferenceRow("p", "yes", "no", better_response_id=0)
