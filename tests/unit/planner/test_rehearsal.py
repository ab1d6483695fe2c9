"""The order of a step, with seconds that are given: schedules worked by hand."""

from types import SimpleNamespace

import pytest

from castor.planner.cast import make_cast
from castor.planner.lengths import Lengths
from castor.planner.rehearsal import Rehearsal
from castor.run.bundles import make_bundles
from tests.unit.planner.runs import OWN, stage_of

SAMPLE, CHUNKS = 4.0, 4  # seconds of sampling, in equal chunks
SECONDS = {"reference": 0.5, "judging": 0.25, "values": 1.0, "fitting": 2.0, "learning": 3.0}
PUBLISH, LOAD = 0.5, 0.25


class Given:
    """In place of `Work`: every call takes seconds that are given."""

    def __init__(self, run, **seconds):
        self.run, self.seconds = run, SECONDS | seconds
        self.costs = SimpleNamespace(device=SimpleNamespace(call_s=0.0))

    def decoder(self, tokens):
        def finished(prompt, lengths):
            each = len(lengths) // CHUNKS
            return [(SAMPLE * (1 + i // each) / CHUNKS, i) for i in range(len(lengths))]

        return SimpleNamespace(finished=finished, prefill=lambda tokens: 0.0, slots=1)

    def reference(self, tokens):
        return self.seconds["reference"]

    def judging(self, name, tokens):
        return self.seconds["judging"]

    def values(self, name, tokens):
        return self.seconds["values"]

    def fitting(self, name, tokens):
        return self.seconds["fitting"]

    def learning(self, tokens):
        return self.seconds["learning"]

    def publishing(self):
        return PUBLISH

    def loading(self):
        return LOAD

    def moving(self, placed, phase):
        return {"judging": 0.125, "critics": 0.25, "learner": 0.5}[phase]


def rehearsed(stage, steps=5, **seconds):
    """The times of the third step of a run, and the rehearsal."""
    actors = stage.actors()
    cast = make_cast(actors, make_bundles(actors, 8), None)
    placed = {each.name: SimpleNamespace(phases={"judging": 1, "critics": 1}) for each in actors}
    rehearsal = Rehearsal(Given(stage.section, **seconds), cast, placed, Lengths(16, 16), 8)
    rehearsal.go(steps)
    return rehearsal.times[2], rehearsal


def parts(times):
    return {part: seconds for part, seconds in times.waited.items() if seconds}


def host(staleness=0, **section):
    return stage_of(rollout={"transfer": "host", "max_staleness": staleness}, **section)[0]


def test_in_turns_with_learning_a_step_is_the_sum_of_what_nothing_overlaps():
    times, _ = rehearsed(host())
    # the last chunk is judged when the others have been; critics are done before the learner is
    expected = {"rollout": 4.0, "judging": 0.5, "values": 1.0, "learner": 3.0, "weights": PUBLISH + LOAD}
    assert parts(times) == pytest.approx(expected)
    assert times.seconds == pytest.approx(9.25)


def test_a_critic_that_is_slower_than_the_learner_is_waited_for():
    times, _ = rehearsed(host(), fitting=5.0)
    assert parts(times)["critics"] == pytest.approx(2.0)


def test_judges_that_are_slower_than_sampling_are_waited_for():
    times, _ = rehearsed(host(), reference=3.0)
    assert parts(times)["judging"] == pytest.approx(1.0 + 4 * 3.0 - SAMPLE)  # the first chunk comes at 1


def test_two_replicas_share_the_chunks():
    times, _ = rehearsed(host(reference={"ranks": 2}), reference=3.0)
    assert parts(times)["judging"] == pytest.approx(2.0 + 2 * 3.0 - SAMPLE)  # the second one's first chunk comes at 2


def test_with_staleness_a_step_is_the_longer_half():
    times, _ = rehearsed(host(staleness=1), judging=0.0, reference=0.0)
    # the learner's half: values 1, update 3, publishing 0.5. The engine's: sampling 4, loading 0.25
    assert times.seconds == pytest.approx(4.5)
    assert "rollout" not in parts(times)
    slow, _ = rehearsed(host(staleness=1), judging=0.0, reference=0.0, learning=1.0, fitting=0.5)
    assert slow.seconds == pytest.approx(SAMPLE + LOAD, abs=0.01)  # now the engine's


def test_the_idle_time_of_every_group_is_that_of_the_others_work():
    times, rehearsal = rehearsed(host())
    worked = {name: sum(part.get(name, 0.0) for part in times.worked.values()) for name in rehearsal.cast.groups}
    assert worked["rollout"] == pytest.approx(SAMPLE + LOAD)
    assert worked["reference"] == pytest.approx(CHUNKS * 0.5)
    assert worked["learner"] == pytest.approx(3.0 + PUBLISH)
    # two ranks share the chunks, and work together on values and updates
    assert worked["signal-help"] == pytest.approx(CHUNKS * 0.25 / 2 + 1.0 + 2.0)
    assert times.worked["rollout"]["learner"] == 0.0


def test_in_turns_on_the_same_gpus_every_phase_waits_for_the_one_before():
    share = {"gpus": 0.2}
    engine = {"zero_stage": 2}
    judge = {"role": "objective", "model": "x", "critic": engine, "resources": share}
    stage, _ = stage_of(
        colocate=True, signals={"help": judge}, rollout={"workers": 1, "resources": share},
        reference={"resources": share}, learner={"ranks": 1, "engine": engine, "resources": share},
    )  # fmt: skip
    times, _ = rehearsed(stage)
    expected = {
        "rollout": 4.0, "judging": CHUNKS * (0.5 + 0.25), "values": 1.0, "critics": 2.0, "learner": 3.0,
        "weights": PUBLISH + LOAD,
        # reference and judge at half speed each, as they come and go together; critic and learner alone
        "switching": 2 * 2 * 0.125 + 2 * 0.25 + 2 * 0.5,
    }  # fmt: skip
    assert times.seconds == pytest.approx(sum(expected.values()))
    assert {part: parts(times)[part] for part in expected} == pytest.approx(expected)


def test_new_weights_that_overtake_let_the_next_step_be_dealt_when_all_have_them():
    stage = stage_of(rollout={"max_staleness": 1, "on_new_weights": "continue", "workers": 2, "resources": OWN})[0]
    times, _ = rehearsed(stage, judging=0.0, reference=0.0)
    assert stage.section.transfer == "nccl"
    assert times.seconds == pytest.approx(1.0 + 3.0 + PUBLISH)
    sampling, _ = rehearsed(stage, judging=0.0, reference=0.0, learning=1.0, fitting=0.5)
    assert sampling.seconds == pytest.approx(SAMPLE + PUBLISH)  # in which every engine stops for the weights
