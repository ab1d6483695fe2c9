"""What goes wrong within a run that all processes survive: numbers, disks, prompts."""

import os
import signal

import numpy as np
import ray

from actors.learner import LearnerWorker
from actors.rollout import RolloutWorker
from castor.io.checkpoint import StagedFolder
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl
from castor.run.checkpoints import Checkpoints
from tests.chaos.rlhf_run import ENGINE, ROLLOUT, STEPS, Run
from trainers.prompts import fitting_prompts


def nan_while_armed(flag):
    """A learner's rank whose advantages are no numbers while a file is there; it notes the seeds it was given."""
    base = LearnerWorker.__ray_metadata__.modified_class

    class Poisoned(base):
        def _combined(self, advantages, coefficients):
            combined = super()._combined(advantages, coefficients)
            return combined * np.float32("nan") if flag.exists() else combined

    return ray.remote(Poisoned)


def test_gradients_that_are_not_finite_and_a_disk_that_refuses(ray_session, tiny_models, tmp_path, monkeypatch):
    """With rollout and learning at the same time, a disk refuses the first checkpoint. Two steps are left out; the
    third in a row sends the run back, and on with other samples.
    """
    monkeypatch.chdir(tmp_path)
    learner = {"engine": ENGINE, "max_skipped": 2}
    options = {"checkpoint": {"every_steps": 1, "keep": 9}, "rollout": ROLLOUT | {"max_staleness": 1}}
    run = Run(tmp_path / "run", tiny_models, learner=learner, steps=5, **options)
    flag, poisoned = tmp_path / "poison", []
    monkeypatch.setattr("trainers.rlhf.groups.LearnerWorker", nan_while_armed(flag))
    commit, refused = StagedFolder.commit, []

    def refuse_the_first(staged, marks):
        if not refused and staged.folder.name.startswith("step-"):
            refused.append(staged.folder.name)
            raise CastorError("the disk is full")
        commit(staged, marks)

    monkeypatch.setattr(StagedFolder, "commit", refuse_the_first)
    tell = run.screen.line

    def line(text):
        tell(text)
        if "step   1/5" in text and not poisoned:
            poisoned.append(text)
            flag.touch()
        if "goes on after" in text:
            flag.unlink(missing_ok=True)

    run.screen.line = line
    run.go()
    told = [text for text in run.screen.lines if "after step" in text and "save" not in text]
    assert "the gradients of 3 steps in a row were not finite" in told[0]
    back = int(told[1].removeprefix("run goes on after step "))  # as far as checkpoints were written by then
    assert 0 <= back <= 3
    assert (len(told), read_json(run.files.run_record)["restarts"]) == (2, 1)
    assert refused == ["step-000000001"]
    saves = [text for text in run.screen.lines if "save" in text]
    assert (
        "the state after step 1 is not saved[/]: the disk is full\nrun goes on, unsaved from its beginning" in saves[0]
    )
    assert "run is saved again, after step " in saves[1]
    numbers = [step["metrics"] for step in run.numbers()]
    assert [step["skipped_updates"] for step in numbers] == [float(2 <= step <= back) for step in range(1, 6)]
    assert ["grad_norm" in step for step in numbers] == [step["skipped_updates"] == 0 for step in numbers]
    assert len(run.ledger()) == 5


def deadly_to(base, prompt, witnesses):
    """A rollout worker that one prompt kills."""

    class Deadly(base):
        def generate(self, requests, decode):
            if any(request.prompt.text == prompt.read_text() for request in requests):
                (witnesses / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().generate(requests, decode)

    return ray.remote(Deadly)


def test_a_prompt_that_kills_its_engine_is_set_aside(undisturbed, tiny_models, tmp_path, monkeypatch):
    """It is known once it kills an engine that samples nothing else; the step is dealt without it, and so are all later
    ones, which every checkpoint says, too.
    """
    monkeypatch.chdir(tmp_path)
    text, witnesses = tmp_path / "text", tmp_path / "witnesses"
    witnesses.mkdir()
    number = undisturbed[3][1].responses[4][0]  # the third prompt of step 2

    def fitting(*args):
        prompts = fitting_prompts(*args)
        text.write_text(prompts[number].text)
        return prompts

    monkeypatch.setattr("trainers.rlhf.stage.fitting_prompts", fitting)
    monkeypatch.setattr("actors.rollout_pool.FinishingWorker", deadly_to(RolloutWorker, text, witnesses))
    run = Run(tmp_path / "run", tiny_models)
    kept = []
    run.at(STEPS, lambda: kept.append(read_json(Checkpoints(run.files.training).newest().record)))
    run.go()
    assert kept[0]["prompts"]["aside"] == [number]
    (told,) = [line for line in run.screen.lines if "is set aside" in line]
    assert told.startswith(f"[yellow]prompt {number} is set aside[/]: 3 engines died of it")
    assert len(list(witnesses.iterdir())) == 3
    assert [row["prompt"] for row in read_jsonl(run.files.deadly_prompts)] == [text.read_text()]
    record = read_json(run.files.run_record)
    assert (record["set_aside"], record["restarts"]) == ([number], 0)
    assert [entry.aside for entry in run.ledger()] == [(), (number,), *[()] * (STEPS - 2)]
    assert run.numbers()[0] == undisturbed[0][0]
