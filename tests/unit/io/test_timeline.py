"""Timelines: what the trace event format asks for, processes that were killed, and the bound on their size."""

import json

import pytest

from castor.io import timeline
from castor.io.timeline import NoRecorder, Recorder, write_timeline


def read(folder):
    target = folder / "timeline.json"
    cut = write_timeline(folder, target)
    return json.loads(target.read_text())["traceEvents"], cut


def spans(events, name=None):
    return [event for event in events if event["ph"] == "X" and name in (None, event["name"])]


def test_a_row_a_process_and_times_in_microseconds(tmp_path):
    learner, driver = Recorder(tmp_path, "learner-0"), Recorder(tmp_path, "driver")
    learner.span("step", 12.5, 13.0, step=3)
    driver.span("step", 10.0, 14.25, step=3)
    events, cut = read(tmp_path)
    assert cut == []
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == ["driver", "learner-0"]  # who began first is first
    found = {names[event["pid"]]: event for event in spans(events)}
    assert found["driver"] == {
        "ph": "X", "name": "step", "ts": 10_000_000, "dur": 4_250_000, "tid": 0, "args": {"step": 3}, "pid": 1,
    }  # fmt: skip
    assert (found["learner-0"]["ts"], found["learner-0"]["dur"]) == (12_500_000, 500_000)


@pytest.mark.parametrize("place", ["ε", "a b", "3"])
def test_a_line_that_was_being_written_when_its_process_was_killed_is_left_out(place, tmp_path):
    recorder = Recorder(tmp_path, place)
    recorder.span("whole", 1.0, 2.0)
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("a") as handle:
        handle.write('{"ph": "X", "name": "ha')
    events, _ = read(tmp_path)
    assert [event["name"] for event in spans(events)] == ["whole"]


def test_what_nests_nests_in_whole_microseconds(tmp_path):
    recorder = Recorder(tmp_path, "driver")
    recorder.span("inner", 1.0000009, 1.0000031)
    recorder.span("outer", 1.0000005, 1.0000031)
    events, _ = read(tmp_path)
    (inner,), (outer,) = spans(events, "inner"), spans(events, "outer")
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_later_events_are_left_out_and_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "EVENTS", 2)
    recorder = Recorder(tmp_path, "rollout-0")
    for second in range(5):
        recorder.span("generate", second, second + 1)
    events, cut = read(tmp_path)
    assert [event["ts"] for event in spans(events)] == [0, 1_000_000]
    assert [event["name"] for event in events if event["ph"] == "i"] == ["2 events: the later ones are left out"]
    assert cut == ["rollout-0"]


def test_without_a_profile_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NoRecorder().span("step", 0.0, 1.0)
    assert list(tmp_path.iterdir()) == []
