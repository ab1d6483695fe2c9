"""States of actors: what may follow what, what is counted, what is said."""

import logging

import pytest

from actors.health import NEXT, Health, Roster


def test_a_life_is_logged_and_counted(caplog):
    roster = Roster()
    with caplog.at_level(logging.INFO, "actors.health"):
        roster.note(["rollout-0", "rollout-1"], Health.STARTING)
        roster.note(["rollout-0", "rollout-1"], Health.HEALTHY)
        roster.note("rollout-1", Health.SUSPECT, "no answer within 10 s")
        roster.note("rollout-1", Health.DEAD)
        roster.note("rollout-1", Health.STARTING)
        roster.note("rollout-1", Health.STALE)
        roster.note("rollout-1", Health.STALE)  # nothing new
    assert roster.metrics() == {
        "actors/starting": 0, "actors/stale": 1, "actors/healthy": 1, "actors/suspect": 0, "actors/dead": 0,
        "actors/retired": 0, "actors/deaths": 1,
    }  # fmt: skip
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "rollout-1: healthy -> suspect: no answer within 10 s",
        "rollout-1: suspect -> dead",
    ]
    assert len(caplog.records) == 8


@pytest.mark.parametrize("before", Health)
@pytest.mark.parametrize("after", Health)
def test_what_cannot_follow_is_refused(before, after):
    roster = Roster()
    roster.health["learner-0"] = before
    if after == before or after in NEXT[before]:
        roster.note("learner-0", after)
        assert roster.health["learner-0"] == after
    else:
        with pytest.raises(ValueError, match=f"learner-0 is {before}, and cannot become {after}"):
            roster.note("learner-0", after)


def test_nobody_comes_back_to_life_but_by_starting():
    assert NEXT[Health.RETIRED] == {Health.STARTING}
    assert NEXT[Health.DEAD] - {Health.RETIRED} == {Health.STARTING}
