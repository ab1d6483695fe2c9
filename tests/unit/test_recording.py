"""What an actor leaves for the timeline: a span for every public method, with the step that it is of."""

import json
import time

import pytest

from actors import recording
from actors.recording import record_here, recorded
from castor.config.load import load_config
from castor.io.errors import CastorError
from castor.io.timeline import write_timeline
from castor.run.plan import make_plan
from castor.run.profile import Profile, check_traceable, traceable
from tests.conftest import ROOT


@recorded
class Worker:
    current_step = None

    def train(self, step, rows=()):
        time.sleep(0.001)
        return step + len(rows)

    def update(self):
        time.sleep(0.001)

    def generate(self, count):
        for number in range(count):
            time.sleep(0.001)
            yield number

    def quick(self):
        return None

    def _own(self):
        time.sleep(0.001)


@pytest.fixture
def events(tmp_path):
    profile = Profile(tmp_path / "sft.profile")
    record_here(profile, "worker-0")

    def read():
        write_timeline(profile.folder, profile.timeline)
        found = json.loads(profile.timeline.read_text())["traceEvents"]
        return {event["name"]: event["args"] for event in found if event["ph"] == "X"}

    yield read
    record_here(None, "worker-0")


def test_methods_do_what_they_did_and_leave_spans(events):
    worker = Worker()
    assert worker.train(3, rows=[1]) == 4
    assert list(worker.generate(3)) == [0, 1, 2]
    worker.current_step = 7
    worker.update()
    worker.quick()
    worker._own()
    assert events() == {"train": {"step": 3}, "generate": {}, "update": {"step": 7}}


def test_a_method_that_raises_leaves_its_span(events):
    worker = Worker()
    with pytest.raises(TypeError):
        worker.train(3, rows=time.sleep(0.001))
    assert events() == {"train": {"step": 3}}


def test_an_actor_is_told_by_its_environment(tmp_path, monkeypatch):
    for name, value in Profile(tmp_path).env("signal-harm-0").items():
        monkeypatch.setenv(name, value)
    recording._of_environment.cache_clear()
    recording.recorder().span("score", 1.0, 2.0)
    recording._of_environment.cache_clear()
    (file,) = tmp_path.glob("signal-harm-0.*.jsonl")
    assert len(file.read_text().splitlines()) == 2


def test_names_of_traces_are_those_of_actors_and_of_stages():
    plan = make_plan(load_config(ROOT / "configs" / "demo.yaml"))
    assert traceable(plan.stage("sft")) == ["sft"]
    assert traceable(plan.stage("collect")) == []
    assert traceable(plan.stage("ppo")) == ["reference", "learner", "signal-helpfulness"]
    check_traceable(plan.stages, ["learner", "signal-harm", "cost"])
    with pytest.raises(CastorError, match="--profile-torch rollout: no stage of this run has that; it can trace sft,"):
        check_traceable(plan.stages, ["learner", "rollout"])
