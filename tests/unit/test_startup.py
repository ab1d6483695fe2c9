"""Seconds of a start by cause: no second counts twice, and a stage's add up to the whole."""

import logging

import pytest

from actors import startup
from actors.startup import IMPORTS, Beginning, Spent, Start, during, phase


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_cause_within_another_is_counted_once():
    time = Time()
    spent = Spent(time)
    time.now = 105.0  # waited to be asked: nobody's
    spent.enter("model")
    time.now = 107.0
    spent.enter("imports")
    time.now = 110.0
    spent.leave()
    spent.enter("engine")
    time.now = 110.5
    spent.leave()
    time.now = 111.0
    spent.leave()
    time.now = 120.0
    spent.enter("model")  # of a second model
    time.now = 120.25
    spent.leave()
    assert spent.seconds == {"model": 2.75, "imports": 3.0, "engine": 0.5}
    assert spent.last == 120.25


def test_the_laps_of_a_stage_add_up_to_the_time_until_its_first_token(caplog):
    time = Time()
    beginning = Beginning("ppo_lag", since=98.0, now=time)
    beginning.lap("command")
    time.now = 103.0
    beginning.lap("data")
    time.now = 104.0
    beginning.lap("data")
    with caplog.at_level(logging.INFO, "actors.startup"):
        beginning.lap("actors", 110.0)
        time.now = 113.0
        beginning.first("token", 111.5)
        beginning.first("token", 112.0)
        beginning.lap("data")
    assert beginning.seconds == {"command": 2.0, "data": 4.0, "actors": 6.0, "first token": 1.5}
    assert beginning.first_at == 111.5
    assert [record.getMessage() for record in caplog.records] == [
        "ppo_lag: first token after 13.5 s: command 2.0, data 4.0, actors 6.0, first token 1.5"
    ]


def test_a_group_is_ready_with_its_last_rank(caplog):
    first = Start({"process": 1.0, "imports": 2.0}, 103.5)
    last = Start({"process": 2.0, "imports": 4.25, "model": 1.0, "engine": 0.01}, 109.0)
    beginning = Beginning("ppo", since=100.0)
    with caplog.at_level(logging.INFO, "actors.startup"):
        beginning.ready("signal-harm", 100.0, [first, last])
        beginning.ready("signal-help", 100.0, [Start({"model": 3.0}, 130.0)])  # loaded again, in the same process
        beginning.ready("owner", 100.0, [Start({"process": 50.0, "imports": 1.0}, 101.5)])  # of a process kept ready
    assert beginning.actors["signal-harm"] == {
        "process": 2.0, "imports": 4.25, "model": 1.0, "engine": 0.01, "waiting": 1.74,
    }  # fmt: skip
    assert beginning.actors["signal-help"] == {"model": 3.0}
    assert [record.getMessage() for record in caplog.records] == [
        "signal-harm ready after 9.0 s: process 2.0, imports 4.2, model 1.0, waiting 1.7",
        "signal-help ready after 30.0 s: model 3.0",
        "owner ready after 1.5 s: process 0.5, imports 1.0",
    ]
    assert beginning.metrics()["startup/signal-harm/waiting_s"] == 1.74


def test_phases_of_a_process_are_told_of_once(monkeypatch):
    time = Time()
    monkeypatch.setattr(startup, "_spent", Spent(time))
    monkeypatch.setattr(startup, "_begun", True)

    @during("model")
    def load():
        time.now += 1.0
        with phase(IMPORTS):
            time.now += 5.0
        with phase("engine"):
            time.now += 2.0
            raise ValueError("no such device")

    with pytest.raises(ValueError, match="no such device"):
        load()
    assert startup.startup() == Start({"model": 1.0, "imports": 5.0, "engine": 2.0}, 108.0)
    assert startup.startup().seconds == {}
