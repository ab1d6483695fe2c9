"""Ratios, the JSON of what was measured, and the page made of it."""

import json
import sys

import pytest

from benchmarks.bench import __main__ as bench
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from benchmarks.bench.records import merge, page, to_record, told


def test_a_ratio_is_its_median_and_holds_within_what_is_wanted():
    assert Ratio("a / b", (1.0, 9.0, 2.0)).median == 2.0
    assert Ratio("a / b", (1.0,)).holds is None
    assert Ratio("a / b", (0.5, 0.96, 3.0), at_least=0.95).holds
    assert not Ratio("a / b", (0.94,), at_least=0.95).holds
    assert Ratio("a / b", (1.15,), at_most=1.15).holds
    assert not Ratio("a / b", (1.0,), at_least=0.5, at_most=0.9).holds


def test_works_take_turns_and_are_compared_repetition_by_repetition():
    done = []
    times = in_turns({name: lambda name=name: done.append(name) for name in "ab"}, 3)
    assert "".join(done) == "ab" + "ab" + "ba" + "ab"  # once untimed, then from both ends
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert paired((2.0, 3.0), (1.0, 6.0)) == (2.0, 0.5)
    with pytest.raises(ValueError, match="zip"):
        paired((1.0,), ())


def section(name="learner", values=(0.9, 1.0, 1.2), at_least=0.95):
    ratio = Ratio("bare loop / step", values, at_least=at_least, bounded_by="packing | metrics")
    return Section(name, (ratio,), {"Castor (tokens/s)": 12345.678})


def test_a_section_alone_replaces_only_its_part(tmp_path):
    file = tmp_path / "results.json"
    merge(file, {name: to_record(section(name), 3.0, False, 0.5) for name in ("learner", "score")})
    kept = json.loads(file.read_text())["score"]
    merge(file, {"learner": to_record(section(values=(0.1,)), 3.0, False, 0.5)})
    now = json.loads(file.read_text())
    assert list(now) == ["learner", "score"]
    assert now["score"] == kept
    (ratio,) = now["learner"]["ratios"]
    assert (ratio["median"], ratio["holds"], ratio["at_most"]) == (0.1, False, None)
    assert (tmp_path / "results.md").read_text() == page(now)


def test_the_page_has_a_row_for_every_ratio_figure_and_machine():
    record = to_record(section(), 3.0, True, 7.2)
    text = page({"learner": record, "score": to_record(section("score", (2.0,), None), 61.0, False, 0.5)})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert r"| learner | bare loop / step | 1 | 0.9 to 1.2 | ≥ 0.95 | yes | packing \| metrics |" in rows
    assert r"| score | bare loop / step | 2 | 2 to 2 |  |  | packing \| metrics |" in rows
    assert rows.count("| Castor (tokens/s) | 1.235e+04 |") == 2
    assert f"| learner | {record['date']} | 3 s (smoke) | 7.2 | {record['machine']['processor']}" in text
    assert all(f"{name} " in text for name in ("torch", "vllm", "ray", "deepspeed", "transformers"))
    assert "**no**" in page({"learner": to_record(section(values=(0.1,)), 3.0, False, 0.5)})


def test_the_terminal_says_what_does_not_hold():
    assert "1 (0.9 to 1.2)  holds" in told(section())
    assert "DOES NOT HOLD" in told(section(values=(0.1,)))


def test_every_module_with_a_measure_is_a_section():
    assert {"critic", "data", "learner", "score", "step"} <= set(bench.sections())
    assert not {"measurement", "records", "section", "__main__"} & set(bench.sections())


def test_a_section_that_fails_is_told_of(capfd):
    assert bench.measured("no_such_section", smoke=True) is None
    said = capfd.readouterr().err
    assert "ModuleNotFoundError" in said
    assert "no_such_section: FAILED (1)" in said


def test_the_others_go_on_and_the_status_is_1(monkeypatch, tmp_path, capsys):
    file, found = tmp_path / "results.json", {"learner": None, "score": to_record(section("score"), 3.0, False, 0.5)}
    monkeypatch.setattr(bench, "measured", lambda name, smoke: found[name])
    monkeypatch.setattr(sys, "argv", ["bench", "learner", "score", "--out", str(file)])
    assert bench.main() == 1
    assert "failed: learner" in capsys.readouterr().err
    assert list(json.loads(file.read_text())) == ["score"]
