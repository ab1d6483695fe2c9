"""An RLHF run that is cut short, and the same run that is not: the same numbers, the same weights, the same data."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from actors.learner import LearnerWorker
from actors.rollout import RolloutWorker
from castor.config.pipeline import Config
from castor.config.wandb import WandB
from castor.io import ending
from castor.io.checkpoint import StagedFolder
from castor.io.ending import Ended
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl, sha256_file
from castor.run.checkpoints import Checkpoints
from castor.run.ledger import Entry, Terms, check_ledger
from castor.run.plan import make_plan
from castor.run.tracking import Tracker
from tests.conftest import ROOT
from tests.plans import Lines
from trainers.pipeline import Pipeline
from trainers.prompts import fitting_prompts
from trainers.rlhf.groups import Groups

RAY = Path(sys.executable).with_name("ray")
STEPS = 4
ENGINE = {
    "micro_batch_tokens": 1024,
    "pack_length": 128,
    "optimizer": {"lr": 1e-3, "lr_scheduler_type": "cosine", "lr_warmup_ratio": 0.1},
}
ROLLOUT = {"max_prompt_tokens": 64, "max_new_tokens": 16, "chunk_size": 4, "max_num_seqs": 16, "kv_cache_mib": 64}
JUDGED = {"role": "objective", "function": "judge:score", "critic": ENGINE}
JUDGE = """
from pathlib import Path

def score(prompts, responses):
    if Path({flag!r}).exists():
        raise RuntimeError("the judge is out of order")
    return [float(len(response) % 7) for response in responses]
"""


class Screen(Lines):
    """Keeps what it is told, and has a bar."""

    def bar(self, name):
        from contextlib import nullcontext

        class Bar:
            def update(self, *args):
                """Nothing is shown."""

        return nullcontext(Bar())

    def tell_of_ending(self):
        self.lines.append("ending")


class Run:
    """One run of a folder: PPO-Lag with two ranks, critics, PTX, a judge of one's own and an adapted KL coefficient."""

    def __init__(self, folder, models, **changes):
        judge = folder.parent / "judge.py"
        self.flag = folder.parent / "out-of-order"
        judge.write_text(JUDGE.format(flag=str(self.flag)))
        section = {
            "steps": STEPS,
            "prompts": {"limit": 10},
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "policy": {"model": models.policy},
            "signals": {
                "own": JUDGED | {"critic_model": models.reward},
                "harm": {"role": "constraint", "model": models.cost, "threshold": -0.2, "critic": ENGINE},
            },
            "multipliers": {"lambda_init": 0.5, "lambda_lr": 0.5, "episode_cost_window_size": 16, "rule": "adam_log"},
            "advantage": {"kl_target": 0.5},
            "rollout": ROLLOUT,
            "learner": {"ranks": 2, "engine": ENGINE, "ptx": {"data": {"limit": 20}, "batch_size": 4}},
            "checkpoint": {"every_steps": 1},
        }  # fmt: skip
        config = Config.model_validate({"run_dir": folder, "seed": 3, "rlhf": {"run": {**section, **changes}}})
        self.plan = make_plan(config)
        self.stage, self.files = self.plan.stage("run"), self.plan.files.stage("run")
        self.screen = Screen()

    def at(self, what, act):
        """Do something the first time that a step, or a line with this text, is told of."""
        tell, done = self.screen.line, []
        wanted = f"step   {what}/{STEPS}" if isinstance(what, int) else what

        def line(text):
            tell(text)
            if wanted in text and not done:
                done.append(text)
                act()

        self.screen.line = line

    def go(self, **options):
        """Run, or go on with, the stage."""
        tracker = Tracker(WandB(mode="disabled"), self.plan.files.wandb, "run", {})
        Pipeline(self.plan, self.screen, tracker, lambda: None).run_stage(self.stage, **options)

    def numbers(self):
        """Everything it logged but the seconds."""
        return [
            {**step, "metrics": {k: v for k, v in step["metrics"].items() if not k.endswith("_s")}}
            for step in read_jsonl(self.files.steps)
        ]

    def result(self):
        """What must be equal in a run that was cut short: numbers, weights, multipliers, what it was trained on."""
        weights = {path.name: sha256_file(path) for path in self.files.policy.iterdir()}
        return self.numbers(), weights, read_json(self.files.multipliers), read_jsonl(self.files.ledger)


@pytest.fixture(scope="module")
def undisturbed(ray_session, tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(folder / "run", tiny_models)
        run.go()
    assert not run.files.training.folder.exists()
    entries = [Entry.from_json(values) for values in read_jsonl(run.files.ledger)]
    assert check_ledger(entries, Terms(**read_json(run.files.run_record)["ledger"])) == STEPS
    return run.result()


KILLED = """
import os, signal, sys, time
from types import SimpleNamespace
from pathlib import Path
from actors.cluster import cluster
from castor.config.cluster import RayCluster
from castor.run.checkpoints import Checkpoints
from tests.chaos.test_resume import Run

folder, policy, reward, cost = sys.argv[1:]
os.chdir(Path(folder).parent)
run = Run(Path(folder), SimpleNamespace(policy=policy, reward=reward, cost=cost))

def die():
    deadline = time.monotonic() + 30
    while not Checkpoints(run.files.training).all() and time.monotonic() < deadline:
        time.sleep(0.05)  # the checkpoint of step 1 is being put in place
    os.kill(os.getpid(), signal.SIGKILL)

run.at(2, die)
with cluster(RayCluster(num_cpus=4)):
    run.go()
"""


def test_a_driver_that_is_killed_an_interrupt_a_judge_that_fails_and_the_same_command(
    undisturbed, tiny_models, tmp_path, monkeypatch
):
    """It goes on from the checkpoint before the kill, and from the last step before the others, though none was due."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(folder), tiny_models.policy, tiny_models.reward, tiny_models.cost]
    killed = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=600, check=False, stderr=subprocess.DEVNULL
    )
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)
    run = Run(folder, tiny_models, checkpoint={"every_minutes": 600, "url": f"file://{tmp_path / 'bucket'}"})
    assert [each.step for each in Checkpoints(run.files.training).all()] == [1]
    with pytest.raises(CastorError, match=r"run was cut short after step 1, .*: steps 4 -> 5\. Undo that"):
        Run(folder, tiny_models, steps=5).go()

    run.at(2, lambda: ending.interrupt(signal.SIGTERM, None))
    with pytest.raises(Ended, match="the same command goes on after step 2 of run"):
        run.go()
    ending._asked.clear()
    shutil.rmtree(run.files.training.folder)  # the disk is lost with its node
    assert run.screen.lines[0] == "run goes on after step 1 of 4"
    assert "ending" in run.screen.lines

    run.at(3, run.flag.touch)
    with pytest.raises(Exception, match="the judge is out of order"):
        run.go()
    assert f"run: the state after step 2 is back from file://{tmp_path}/bucket/run/run" in run.screen.lines
    assert "run goes on after step 2 of 4" in run.screen.lines
    assert "the same command goes on after step 3 of run" in run.screen.lines[-1]
    assert [each.step for each in Checkpoints(run.files.training).all()] == [2, 3]
    run.flag.unlink()
    run.go()
    assert "run goes on after step 3 of 4" in run.screen.lines
    assert run.result() == undisturbed
    assert not run.files.training.folder.exists()


def kill(group, rank=0):
    """End the process of one actor."""
    process = ray.get(group.handles[rank].__ray_call__.remote(lambda actor: os.getpid()), timeout=60)
    os.kill(process, signal.SIGKILL)
    return process


def watched_groups(monkeypatch):
    """Lists of the `Groups` that are made from now on, and of the names of the groups that they start."""
    made, started = [], []

    class WatchedGroups(Groups):
        def __init__(self, *args, **options):
            made.append(self)
            super().__init__(*args, **options)

        def _start(self, name):
            started.append(name)
            return super()._start(name)

    monkeypatch.setattr("trainers.rlhf.stage.Groups", WatchedGroups)
    return made, started


def test_groups_that_die_one_after_the_other(undisturbed, tiny_models, tmp_path, monkeypatch):
    """A rank of the learner before there is a checkpoint, the reference, a critic, the learner where the policy is
    to be saved; each comes back alone. That all of them take turns changes nothing.
    """
    monkeypatch.chdir(tmp_path)
    options = {"max_restarts": 4, "checkpoint": {"every_steps": 2, "every_minutes": None}}
    run = Run(tmp_path / "run", tiny_models, colocate=True, **options)
    killed = []
    made, started = watched_groups(monkeypatch)
    run.at(1, lambda: killed.append(kill(made[0].learner, rank=1)))
    run.at(2, lambda: killed.append(kill(made[0].reference)))
    run.at(3, lambda: killed.append(kill(made[0].signals["harm"])))
    run.at(4, lambda: killed.append(kill(made[0].learner)))
    run.go()
    assert not any(psutil.pid_exists(process) for process in killed)
    assert started[4:] == ["learner", "reference", "signal-harm", "learner"]
    assert (len(set(killed)), read_json(run.files.run_record)["restarts"]) == (4, 4)
    told = [line.rsplit(" ", 1)[-1] for line in run.screen.lines if "after step" in line]
    assert told[:5] == ["1", "0", "2", "2", "3"]
    assert told[6] == "4"
    assert {told[5], told[7]} <= {"0", "2"}  # as far as checkpoints were written by then
    assert run.result() == undisturbed


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
    entries = [Entry.from_json(values) for values in read_jsonl(run.files.ledger)]
    assert check_ledger(entries, Terms(**read_json(run.files.run_record)["ledger"])) == 5


def sleep(actor):
    time.sleep(3600)


def wait_for_itself(actor):
    lock = threading.Lock()
    with lock, lock:
        pass


def sleep_in_the_next_update(owner):
    import actors.multipliers

    actors.multipliers.UPDATE_S = 2.0
    owner._update = lambda *args: time.sleep(3600)


def test_actors_of_every_kind_that_are_stuck(undisturbed, tiny_models, tmp_path, monkeypatch, caplog, capfd):
    """Each is named, shows its stack within the deadline, is ended and replaced; nothing else changes."""
    monkeypatch.chdir(tmp_path)
    learner = {"ranks": 2, "engine": ENGINE, "ptx": {"data": {"limit": 20}, "batch_size": 4}, "timeout_s": 45}
    run = Run(tmp_path / "run", tiny_models, learner=learner, rollout=ROLLOUT | {"timeout_s": 20})
    made, started = watched_groups(monkeypatch)
    calls = []

    def plant(what, *handles):
        calls.extend(handle.__ray_call__.remote(what) for handle in handles)

    run.at(1, lambda: plant(sleep, *made[0].rollout.workers))
    run.at(2, lambda: plant(sleep, made[0].learner.handles[1], made[0].reference.handles[0]))
    run.at(2, lambda: plant(wait_for_itself, made[0].signals["harm"].handles[0]))
    run.at(3, lambda: plant(sleep_in_the_next_update, made[0].multipliers))
    run.go()
    assert len(calls) == 5
    assert (made[0].rollout.restarts, read_json(run.files.run_record)["restarts"]) == (1, 1)
    assert set(started[4:]) == {"learner", "reference", "signal-harm"}
    for name in ("rollout-0", "learner-1", "reference-0", "signal-harm-0"):
        assert f"{name}: healthy -> suspect: " in caplog.text
        assert f"{name}: suspect -> dead" in caplog.text
    told = [text for text in run.screen.lines if "stuck" in text]
    assert len(told) == 1
    assert all(name in told[0] for name in ("learner", "reference", "signal-harm"))
    shown = capfd.readouterr()
    for function in ("in sleep", "in wait_for_itself", "in <lambda>"):
        assert function in shown.out + shown.err
    assert run.result() == undisturbed


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
    """It is known once it kills an engine that samples nothing else; the step is dealt without it, and so are all
    later ones, those after an interrupt included.
    """
    monkeypatch.chdir(tmp_path)
    text, witnesses = tmp_path / "text", tmp_path / "witnesses"
    witnesses.mkdir()
    number = undisturbed[3][1]["responses"][4][0]  # the third prompt of step 2

    def fitting(*args):
        prompts = fitting_prompts(*args)
        text.write_text(prompts[number].text)
        return prompts

    monkeypatch.setattr("trainers.rlhf.stage.fitting_prompts", fitting)
    monkeypatch.setattr("actors.rollout_pool.FinishingWorker", deadly_to(RolloutWorker, text, witnesses))
    run = Run(tmp_path / "run", tiny_models)
    run.at(3, lambda: ending.interrupt(signal.SIGTERM, None))
    with pytest.raises(Ended):
        run.go()
    ending._asked.clear()
    (told,) = [line for line in run.screen.lines if "set aside" in line]
    assert told.startswith(f"[yellow]prompt {number} is set aside[/]: 3 engines died of it")
    run.go()
    assert len(list(witnesses.iterdir())) == 3
    assert [row["prompt"] for row in read_jsonl(run.files.deadly_prompts)] == [text.read_text()]
    record = read_json(run.files.run_record)
    assert (record["set_aside"], record["restarts"]) == ([number], 0)
    ledger = [Entry.from_json(values) for values in read_jsonl(run.files.ledger)]
    assert check_ledger(ledger, Terms(**record["ledger"])) == STEPS
    assert [entry.aside for entry in ledger] == [(), (number,), (), ()]
    assert run.numbers()[0] == undisturbed[0][0]


class Node:
    """A node more in the cluster of the session, with room for one rank of a learner."""

    def __init__(self, name):
        self.place = Path("/tmp") / f"castor-{os.getpid()}-{name}"  # the paths of Ray's sockets must stay short
        address = ray.get_runtime_context().gcs_address
        command = [RAY, "start", f"--address={address}", "--num-cpus=1", '--resources={"rank": 1}']
        command += ["--object-store-memory=200000000", f"--temp-dir={self.place}", "--disable-usage-stats"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def kill(self):
        """End everything on it at once; returns the number of processes."""
        every = psutil.process_iter(["cmdline"])
        own = [process for process in every if str(self.place) in " ".join(process.info["cmdline"] or [])]
        ended = {each.pid: each for process in own for each in (process, *process.children(recursive=True))}
        for process in ended.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(ended)


def test_a_node_that_is_lost_and_another_that_comes(undisturbed, tiny_models, tmp_path, monkeypatch, caplog):
    """The learner goes on with one rank, and with two again: to rounding, the numbers are those of two."""
    monkeypatch.chdir(tmp_path)
    learner = {"ranks": 2, "engine": ENGINE | {"zero_stage": 3}, "ptx": {"data": {"limit": 20}, "batch_size": 4}}
    learner |= {"rejoin_s": 20, "resources": {"cpus": 0.25, "custom": {"rank": 1}}}
    run = Run(tmp_path / "run", tiny_models, learner=learner)
    made, started = watched_groups(monkeypatch)
    nodes, killed, sizes = [Node("a"), Node("b")], [], []

    def add_a_node():
        sizes.append(len(made[0].learner.handles))
        nodes.append(Node("c"))
        deadline = time.monotonic() + 300
        while not made[0].grown():
            assert time.monotonic() < deadline

    try:
        run.at(1, lambda: killed.append(nodes[1].kill()))
        run.at("goes on after step 0", add_a_node)
        run.at(4, lambda: sizes.append(len(made[0].learner.handles)))
        run.go()
    finally:
        for node in nodes:
            node.kill()
    assert killed[0] > 0
    assert sizes == [1, 2]
    restarts = read_json(run.files.run_record)["restarts"]  # 2 where a new rank was placed on the node that was gone
    assert restarts in (1, 2)
    assert started.count("learner") == restarts + 2
    assert "learner goes on with 1 of 2 ranks" in caplog.text
    assert "run: ranks that were missing are back" in run.screen.lines
    for calm, other in zip(undisturbed[0], run.numbers(), strict=True):
        for name in ("actor_loss", "kl", "own/critic_loss", "harm/critic_loss", "ptx_loss", "grad_norm"):
            assert other["metrics"][name] == pytest.approx(calm["metrics"][name], rel=2e-3, abs=1e-4), (
                calm["step"],
                name,
            )
    assert [entry["responses"] for entry in read_jsonl(run.files.ledger)] == [
        each["responses"] for each in undisturbed[3]
    ]
