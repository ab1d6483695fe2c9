import pytest

from castor.data.rows.schemas import PreferenceRow, PromptRow, QARow, parse_prompt_row, parse_row
from castor.data.sources.record import RowError
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES

NO_HARM = dict.fromkeys(PKU_CATEGORIES, False)
NO_BEAVERTAILS_HARM = dict.fromkeys(BEAVERTAILS_CATEGORIES, False)


def preference(**changes):
    """A row with the fields of the newest PKU-SafeRLHF release."""
    return {
        "prompt": "How do I open a locked door?",
        "response_0": "Call a locksmith.",
        "response_1": "Break it.",
        "prompt_source": "a",
        "response_0_source": "b",
        "response_1_source": "c",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "response_0_harm_category": NO_HARM,
        "response_1_harm_category": NO_HARM | {"White-Collar Crime": True, "Economic Crime": True},
        "response_0_severity_level": 0,
        "response_1_severity_level": 2,
        "better_response_id": 1,
        "safer_response_id": 0,
        "response_0_sha256": "0",
        "response_1_sha256": "1",
    } | changes


def qa(**changes):
    return {"prompt": "q", "response": "a", "is_safe": True, "category": NO_BEAVERTAILS_HARM} | changes


def reason_of(parse, raw):
    with pytest.raises(RowError) as caught:
        parse(raw)
    return caught.value.reason


def test_newest_preference_row_keeps_every_label():
    assert parse_row(preference()) == PreferenceRow(
        prompt="How do I open a locked door?",
        response_0="Call a locksmith.",
        response_1="Break it.",
        is_response_0_safe=True,
        is_response_1_safe=False,
        response_0_harm_category=frozenset(),
        response_1_harm_category=frozenset({"White-Collar Crime", "Economic Crime"}),
        response_0_severity_level=0,
        response_1_severity_level=2,
        better_response_id=1,
        safer_response_id=0,
    )


def test_labels_older_releases_lack_are_none():
    old = parse_row({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0})
    assert old == PreferenceRow("p", "a", "b", better_response_id=0)
    assert parse_row(preference(safer_response_id=None)).safer_response_id is None
    assert parse_row({"prompt": "p", "response": "a"}) == QARow("p", "a")


def test_texts_are_not_changed():
    row = parse_row(qa(prompt="  p\n", response="\ta "))
    assert (row.prompt, row.response) == ("  p\n", "\ta ")


def test_qa_names_with_commas_stay_whole():
    category = NO_BEAVERTAILS_HARM | {"controversial_topics,politics": True}
    assert parse_row(qa(is_safe=False, category=category)).category == {"controversial_topics,politics"}


def test_qa_takes_pku_harm_category():
    raw = {"prompt": "p", "response": "a", "is_safe": False, "harm_category": {"Drugs": True}, "severity_level": 3}
    assert parse_row(raw) == QARow("p", "a", False, frozenset({"Drugs"}), 3)


def test_qa_of_a_preference_row():
    row = parse_row(preference())
    assert row.qa(0) == QARow(row.prompt, row.response_0, True, frozenset(), 0)
    assert row.qa(1) == QARow(row.prompt, row.response_1, False, row.response_1_harm_category, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": None}, "missing field"),
        ({"response_1": None}, "missing field"),
        ({"prompt": 3}, "wrong type"),
        ({"prompt": " \n"}, "empty prompt"),
        ({"response_0": ""}, "empty response"),
        ({"response_0": "half \ud83d"}, "invalid text"),
        ({"response_0": "Break it. "}, "identical responses"),
        ({"is_response_0_safe": 2}, "wrong type"),
        ({"is_response_0_safe": 0.5}, "wrong type"),
        ({"is_response_0_safe": "maybe"}, "wrong type"),
        ({"response_0_harm_category": ["Drugs"]}, "is_safe contradicts the categories"),
        ({"response_0_harm_category": [True] * 18}, "label vector of the wrong width"),
        ({"response_0_harm_category": [True, "Drugs"]}, "wrong type"),
        ({"response_0_harm_category": 3}, "wrong type"),
        ({"response_0_harm_category": ["drugs"]}, "unknown category"),
        ({"prompt": float("nan")}, "missing field"),
        ({"history": "earlier"}, "wrong type"),
        ({"history": [["one"]]}, "wrong type"),
        ({"history": [["u", " "]]}, "empty response"),
        ({"history": [["u", None]]}, "missing field"),
        ({"response_1_harm_category": {"drugs": True}}, "unknown category"),
        ({"better_response_id": 2}, "id out of range"),
        ({"safer_response_id": -1}, "id out of range"),
        ({"safer_response_id": True}, "wrong type"),
        ({"better_response_id": 0.5}, "id out of range"),
        ({"better_response_id": float("inf")}, "id out of range"),
        ({"better_response_id": "yes"}, "wrong type"),
        ({"better_response_id": "first"}, "wrong type"),
        ({"better_response_id": [0]}, "wrong type"),
        ({"response_1_severity_level": 2.5}, "severity out of range"),
        ({"response_1_severity_level": 4}, "severity out of range"),
        ({"safer_response_id": 1}, "safer response is the unsafe one"),
        ({"response_0_harm_category": {"Drugs": True}}, "is_safe contradicts the categories"),
    ],
)
def test_bad_preference_rows(changes, reason):
    assert reason_of(parse_row, preference(**changes)) == reason


def test_contradiction_is_found_for_either_id():
    swapped = {"is_response_0_safe": False, "is_response_1_safe": True, "response_1_harm_category": NO_HARM}
    assert reason_of(parse_row, preference(**swapped, safer_response_id=0)) == "safer response is the unsafe one"
    assert parse_row(preference(**swapped, safer_response_id=1)).safer_response_id == 1


@pytest.mark.parametrize("safer", [0, 1])
def test_two_safe_responses_may_be_ranked_either_way(safer):
    both = preference(is_response_1_safe=True, response_1_harm_category=NO_HARM, safer_response_id=safer)
    assert parse_row(both).safer_response_id == safer


def test_is_safe_must_agree_with_the_categories():
    harm = NO_BEAVERTAILS_HARM | {"self_harm": True}
    assert reason_of(parse_row, qa(is_safe=True, category=harm)) == "is_safe contradicts the categories"
    assert reason_of(parse_row, qa(is_safe=False)) == "is_safe contradicts the categories"
    assert parse_row(qa(is_safe=None)).is_safe is None


def test_pku_leaves_room_for_a_harm_outside_its_list():
    assert parse_row(qa(is_safe=False, category=NO_HARM)).category == frozenset()


def test_rows_are_told_apart_by_their_fields():
    assert isinstance(parse_row(preference()), PreferenceRow)
    assert isinstance(parse_row(qa()), QARow)
    assert isinstance(parse_row({"prompt": "p"}), PromptRow)
    with pytest.raises(RowError, match="response_0 is absent or null beside response_1; the row has 'prompt', 'resp"):
        parse_row({"prompt": "p", "response_1": "b"})
    with pytest.raises(RowError, match="'question', 'answer'"):
        parse_row({"question": "i", "answer": "o"})


@pytest.mark.parametrize(
    ("spelling", "names"),
    [
        (["self_harm", "animal_abuse"], {"self_harm", "animal_abuse"}),
        ("controversial_topics,politics", {"controversial_topics,politics"}),
        ([index == 10 for index in range(14)], {"self_harm"}),
        ([index in (6, 18) for index in range(19)], {"Drugs", "Animal Abuse"}),
        ([], frozenset()),
    ],
)
def test_categories_may_be_names_or_a_label_vector(spelling, names):
    assert parse_row(qa(is_safe=None, category=spelling)).category == names


def test_a_label_vector_of_all_14_false_contradicts_unsafe():
    assert reason_of(parse_row, qa(is_safe=False, category=[False] * 14)) == "is_safe contradicts the categories"
    assert parse_row(qa(is_safe=False, category=[False] * 19)).category == frozenset()


def test_history_makes_the_key_and_the_exchange():
    row = parse_row(preference(history=[["hi", "hello"]]))
    assert row.key == ("hi", "hello", "How do I open a locked door?") == row.qa(0).key
    assert row.exchanges[1] == (row.prompt, "Break it.", (("hi", "hello"),)) == row.qa(1).exchange
    assert QARow("p", "a").exchange == ("p", "a", ())


def test_prompt_rows_carry_the_category_they_were_written_for():
    raw = {"prompt": "p", "category": "self_harm", "category_id": 10}
    assert parse_prompt_row(raw) == PromptRow("p", (), frozenset({"self_harm"}))
    assert reason_of(parse_prompt_row, raw | {"category_id": 9}) == "category_id contradicts the category"
    assert reason_of(parse_prompt_row, raw | {"category_id": 14}) == "id out of range"
    assert parse_prompt_row(qa()) == PromptRow("q")
