"""Checks of a data set: what is in it, what is wrong with it, which prompts others share, and splits by prompt."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from castor.cli.main import app
from castor.config.data import DataSource
from castor.data.inspect.check import check_source, index_prompts, write_check
from castor.data.inspect.leaks import normalise, prompt_digest
from castor.data.inspect.splitting import split_source
from castor.data.rows.load import load_prompts, stream_every_kind
from castor.data.sources.report import RowReport, require_usable
from castor.io.errors import CastorError
from castor.io.files import write_jsonl

REAL = Path(__file__).parents[4].parent / "shared" / "data"
PAIR = {"prompt": "How?", "response_0": "So.", "response_1": "Not so.", "better_response_id": 0, "safer_response_id": 1}
ANSWER = {"prompt": "How?", "response": "So.", "is_safe": True}


def source_of(folder: Path, rows: list[Any], name: str = "rows.jsonl", **options: Any) -> DataSource:
    write_jsonl(folder / name, rows)
    return DataSource(source=str(folder / name), **options)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "preference"),
        (ANSWER, "qa"),
        ({"prompt": "How?", "response": "So."}, "demonstration"),
        ({"prompt": "How?"}, "prompt"),
    ],
)
def test_the_kind_of_rows_is_detected(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    found = check_source(source_of(tmp_path, [row, {**row, "prompt": "Why?"}]))
    assert dict(found.kinds) == {kind: 2}
    assert found.report.kept == 2


def test_prompts_among_answers_count_as_prompts_and_are_told_of(tmp_path: Path) -> None:
    source = source_of(tmp_path, [{"prompt": "Why?"}, ANSWER, {"prompt": "Who?", "response": None}])
    found = check_source(source)
    assert dict(found.kinds) == {"prompt": 2, "qa": 1}
    assert found.report.dropped == []
    assert found.warnings()[-1] == "rows of several kinds: 2 prompt, 1 qa"
    assert load_prompts(source, RowReport()) == ["Why?", "How?", "Who?"]


@pytest.mark.parametrize(
    ("half", "missing"),
    [
        ("response_0", "response_1"),
        ("response_1", "response_0"),
        ("chosen", "rejected"),
        ("rejected", "chosen"),
        ("output", "instruction"),
    ],
)
def test_half_of_a_pair_is_a_damaged_row_not_a_prompt(tmp_path: Path, half: str, missing: str) -> None:
    found = check_source(source_of(tmp_path, [{"prompt": "Why?", half: "So."}, ANSWER]))
    assert dict(found.kinds) == {"qa": 1}
    assert found.report.dropped[0].detail.startswith(f"{missing} is absent or null beside {half};")


def test_what_a_row_holds_beside_its_richest_reading_is_told_of(tmp_path: Path) -> None:
    asked, answered = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    row = {"prompt": "Why?", "chosen": [asked, answered], "rejected": [asked, {**answered, "content": "No."}]}
    source = source_of(tmp_path, [{**row, "prompt_id": "a1", "messages": [asked, answered]}, ANSWER])
    found = check_source(source)
    assert dict(found.kinds) == {"preference": 1, "qa": 1}
    assert found.labels["better_response_id"] == 1
    assert found.as_dict()["unread"] == {"messages beside chosen and rejected": 1}
    _, output, _ = run("check", source.source, "--out", tmp_path / "out")
    assert "in 1 rows chosen and rejected were read and messages left out" in " ".join(output.split())


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    source = source_of(tmp_path, [{"prompt": f"number {i}"} for i in range(50)])
    report = RowReport()
    rows = stream_every_kind(source, report)
    assert next(rows).row.prompt == "number 0"
    assert report.kept == 1


def test_the_limit_counts_good_rows(tmp_path: Path) -> None:
    source = source_of(tmp_path, [{**ANSWER, "response": " "}, ANSWER, ANSWER, ANSWER], limit=2)
    report = RowReport()
    assert len(list(stream_every_kind(source, report))) == 2
    assert (report.kept, len(report.dropped)) == (2, 1)


def test_counts_labels_duplicates_and_one_class(tmp_path: Path) -> None:
    rows = [ANSWER, ANSWER, {**ANSWER, "prompt": "how ?"}, {**ANSWER, "prompt": "Why?", "severity_level": 0}]
    found = check_source(source_of(tmp_path, rows)).as_dict()
    assert found["labels"] == {
        "better_response_id": 0,
        "safer_response_id": 0,
        "is_safe": 4,
        "category": 0,
        "severity_level": 1,
    }
    assert found["values"] == {"is_safe": {"true": 4}}
    assert (found["duplicates"], found["duplicates_normalised"]) == (1, 2)
    assert (found["prompts"], found["prompts_normalised"]) == (3, 2)
    assert found["warnings"] == ["one class only: is_safe is true in all 4 places it stands"]


def test_contradictory_labels_are_found_with_both_places_and_swapped_pairs_are_the_same_pair(tmp_path: Path) -> None:
    swapped = {**PAIR, "response_0": PAIR["response_1"], "response_1": PAIR["response_0"], "better_response_id": 1}
    found = check_source(source_of(tmp_path, [PAIR, swapped]))  # better: the same text; safer: now the other one
    assert found.repeats.exact_duplicates == 1
    assert [(c["label"], c["first_location"][-2:], c["location"][-2:]) for c in found.repeats.contradictions] == [
        ("safer_response_id", ":1", ":2")
    ]
    found = check_source(source_of(tmp_path, [ANSWER, {**ANSWER, "is_safe": False}, {**ANSWER, "is_safe": False}]))
    assert found.repeats.contradicted() == {"is_safe": 1}


def test_leaks_are_counted_exactly_and_after_normalising(tmp_path: Path) -> None:
    earlier = source_of(tmp_path, [{"prompt": "How do I cook?"}, {"prompt": "Who am I?"}], "test.jsonl")
    rows = [{**ANSWER, "prompt": prompt} for prompt in ("How do I cook?", "how do i  COOK", "how do i  COOK", "Why?")]
    found = check_source(source_of(tmp_path, rows), earlier=[index_prompts(earlier, "prompt")])
    (leak,) = found.leaks
    assert (leak.exact, leak.normalised, leak.rows) == (1, 2, 3)
    assert [(shared["match"], shared["shared_with"][-12:]) for shared in leak.prompts] == [
        ("exact", "test.jsonl:1"),
        ("normalised", "test.jsonl:1"),
    ]


def test_a_prompt_after_other_turns_is_another_prompt() -> None:
    assert prompt_digest(("And then?",)) != prompt_digest(("Boil it.", "I did.", "And then?"))
    assert prompt_digest(("a b", "c")) != prompt_digest(("a", "b c"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Don't  stop!", "dont stop", True),
        ("well-known", "Well known.", True),
        ("ＦＵＬＬ width", "full width", True),
        ("Straße", "STRASSE", True),
        ("?", "!", False),
        ("हाँ", "हो", False),  # vowel signs are not punctuation
        ("2 cups", "3 cups", False),
    ],
)
def test_normalising(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


@given(st.lists(st.text(string.ascii_letters + string.digits, min_size=1), min_size=1), st.sampled_from(" ,.;!\n\t-—…"))
def test_case_whitespace_and_punctuation_do_not_matter(words: list[str], between: str) -> None:
    assert normalise(f"{between} ".join(words).upper() + between) == normalise(" ".join(words)) != ""


def test_the_offending_rows_are_written_and_old_lists_removed(tmp_path: Path) -> None:
    source = source_of(tmp_path, [ANSWER, ANSWER, {**ANSWER, "is_safe": False}, {**ANSWER, "response": ""}])
    names = [path.name for path in write_check(check_source(source), tmp_path / "out")]
    assert names == ["check.json", "dropped.jsonl", "contradictions.jsonl", "duplicates.jsonl"]
    dropped = json.loads((tmp_path / "out" / "dropped.jsonl").read_text())
    assert dropped["location"].endswith("rows.jsonl:4")
    assert dropped["reason"] == "empty response"
    clean = source_of(tmp_path, [ANSWER], "clean.jsonl")
    assert [path.name for path in write_check(check_source(clean), tmp_path / "out")] == ["check.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.json"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"text": "what is this"}], "has no usable rows.*missing field"),
        ([{"text": "?"}] * 200 + [{"prompt": "How?"}], "has hardly any usable rows"),
    ],
)
def test_unusable_sources_say_what_is_wrong(tmp_path: Path, rows: list[Any], message: str) -> None:
    found = check_source(source_of(tmp_path, rows))
    with pytest.raises(CastorError, match=message):
        require_usable(found.report, found.name)


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=8, max_size=40),
    first=st.floats(0.3, 0.7),
    seed=st.integers(0, 3),
)
def test_splits_share_no_prompt_and_meet_their_shares(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], first: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    spellings = ("Prompt {}?", "prompt  {}", "PROMPT {}!")
    rows = [{**ANSWER, "prompt": spellings[i % 3].format(p)} for p, size in enumerate(sizes) for i in range(size)]
    source = source_of(folder, rows)
    written, report = split_source(source, folder / "out", (first, 1 - first), seed)
    assert report.kept == sum(written.values()) == len(rows)
    assert [path.name for path in written] == ["train.jsonl", "test.jsonl"]
    texts = [[json.loads(line) for line in path.read_text().splitlines()] for path in written]
    assert sorted(json.dumps(row) for part in texts for row in part) == sorted(json.dumps(row) for row in rows)
    train, test = ({normalise(row["prompt"]) for row in part} for part in texts)
    assert not train & test
    assert abs(len(texts[0]) - first * len(rows)) <= max(sizes) / 2 + 1e-6
    again, _ = split_source(source, folder / "again", (first, 1 - first), seed)
    assert [path.read_text() for path in again] == [path.read_text() for path in written]


def test_splits_of_rows_with_nan_hold_null(tmp_path: Path) -> None:
    rows = [{**ANSWER, "prompt": f"prompt {i}", "score": float("nan"), "category": {}} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))  # as Python writes NaN
    written, _ = split_source(DataSource(source=str(tmp_path / "rows.jsonl")), tmp_path / "out", (0.5, 0.5), 0)
    lines = [json.loads(line) for path in written for line in path.read_text().splitlines()]
    assert sorted(lines, key=lambda row: row["prompt"]) == [row | {"score": None} for row in rows]


def test_another_seed_splits_differently(tmp_path: Path) -> None:
    source = source_of(tmp_path, [{**ANSWER, "prompt": f"prompt {i}"} for i in range(40)])
    parts = [next(iter(split_source(source, tmp_path / str(s), (0.5, 0.5), s)[0])).read_text() for s in range(2)]
    assert parts[0] != parts[1]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.9, 0.2), "sum 1"),
        ((1.0,), "two or more"),
        ((1.5, -0.5), "positive"),
        ((0.98, 0.02), "test would be empty"),
    ],
)
def test_shares_that_cannot_be_met(tmp_path: Path, shares: tuple[float, ...], message: str) -> None:
    source = source_of(tmp_path, [{**ANSWER, "prompt": f"prompt {i}"} for i in range(5)])
    with pytest.raises(CastorError, match=message):
        split_source(source, tmp_path / "out", shares, 0)
    assert not (tmp_path / "out").exists()


def test_a_split_does_not_overwrite_its_source(tmp_path: Path) -> None:
    source = source_of(tmp_path, [{**ANSWER, "prompt": f"prompt {i}"} for i in range(5)], "train.jsonl")
    with pytest.raises(CastorError, match="overwrite"):
        split_source(source, tmp_path, (0.5, 0.5), 0)


def run(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.output, result.exception


def test_the_commands_check_and_split(tmp_path: Path) -> None:
    rows = [{**ANSWER, "prompt": f"prompt {i}", "is_safe": i % 2 == 0} for i in range(20)]
    file = source_of(tmp_path, [*rows, {**ANSWER, "response": ""}]).source
    code, output, _ = run("split", file, "--out", tmp_path / "parts", "--shares", "0.6", "0.2", "0.2", "--seed", "1")
    assert code == 0
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == [
        "dropped.jsonl",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert output.count("0 shared with the others") == 3
    train, test = tmp_path / "parts" / "train.jsonl", tmp_path / "parts" / "test.jsonl"
    code, output, _ = run("check", train, "--against", test, "--against", file, "--out", tmp_path / "out")
    assert code == 0
    leaks = json.loads((tmp_path / "out" / "check.json").read_text())["leaks"]
    assert [(leak["exact"], leak["rows"]) for leak in leaks] == [(0, 0), (12, 12)]
    assert str(tmp_path / "out" / "leaks.jsonl") in output.replace("\n", "")


def test_the_splits_of_a_set_are_compared_with_each_other(tmp_path: Path) -> None:
    arguments = ("check", "synthetic", "--rows", "qa", "--limit", "30", "--out", tmp_path)
    code, output, _ = run(*arguments, "--split", "train", "--split", "test")
    assert code == 0
    assert "prompts shared with synthetic[train]" in output
    assert json.loads((tmp_path / "test" / "check.json").read_text())["leaks"][0]["rows"] == 0
    code, _, _ = run(*arguments, "--against", "synthetic@train")
    assert json.loads((tmp_path / "check.json").read_text())["leaks"][0]["exact"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "no_such_set"), "no_such_set"),
        (("check", "synthetic", "--split", "dev"), "train, validation and test"),
        (("check", "synthetic", "--rows", "pairs"), "no kind of rows"),
        (("check", "synthetic", "--split", "test", "--split", "test"), "one split twice"),
        (("split", "synthetic", "--out", "unused", "--shares", "1"), "two or more"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: tuple[str, ...], message: str) -> None:
    _, _, error = run(*arguments)
    assert isinstance(error, CastorError)
    assert message in str(error)


def test_strict_makes_a_bad_row_an_error(tmp_path: Path) -> None:
    file = source_of(tmp_path, [ANSWER, {**ANSWER, "response": ""}]).source
    _, _, error = run("check", file, "--strict", "--out", tmp_path / "out")
    assert isinstance(error, CastorError)
    assert "rows.jsonl:2: empty response" in str(error)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real rows are not here")
@pytest.mark.parametrize(
    ("file", "kind", "rows", "prompts"),
    [
        ("beavertails/beavertails-30k-test-part.jsonl.gz", "qa", 2057, 1721),
        ("beavertails/two-arrays.json", "qa", 20, 20),
        ("beavertails-evaluation/BeaverTails-Evaluation.json", "prompt", 700, 700),
    ],
)
def test_real_files(file: str, kind: str, rows: int, prompts: int) -> None:
    found = check_source(DataSource(source=str(REAL / file)))
    assert (dict(found.kinds), found.report.dropped) == ({kind: rows}, [])
    assert (len(found.prompts.exact), found.labels["category"]) == (prompts, rows)
