"""Groups of an RLHF run that die, are stuck, or lose their node: the run ends as if nothing had happened."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from actors.rollout import RolloutWorker
from benchmarks.recovery import soak
from castor.io.files import read_json, read_jsonl
from tests.chaos.rlhf_run import ENGINE, ROLLOUT, STEPS, Run, engine_process, kill, watched_groups
from tests.faults import Faults, mortal_while_loading

RAY = Path(sys.executable).with_name("ray")


def test_groups_that_die_one_after_the_other(undisturbed, tiny_models, tmp_path, monkeypatch):
    """A rank of the learner before there is a checkpoint, the multiplier owner, the reference, an engine that sleeps;
    then whatever `benchmarks/recovery.py --soak` kills at random moments, and the learner while the policy is saved.
    Each comes back alone. That all of them take turns changes nothing.
    """
    monkeypatch.chdir(tmp_path)
    options = {"max_restarts": 9, "checkpoint": {"every_steps": 2, "every_minutes": None}}
    run = Run(tmp_path / "run", tiny_models, colocate=True, rollout=ROLLOUT | {"engine": "async"}, **options)
    killed, kills, done = [], [], threading.Event()
    random = threading.Thread(target=soak(3, seed=5, between_s=0.5), args=(run.screen, kills, done))
    made, started = watched_groups(monkeypatch)

    def kill_an_engine_that_sleeps(groups):
        groups.turns.to("learner")
        killed.append(kill(groups.rollout.workers[0], engine_process))
        groups.turns.to("rollout")
        groups.rollout.load_weights(groups.rollout.update)

    run.at(1, lambda: killed.append(kill(made[0].learner.handles[1])))
    run.at(1, lambda: killed.append(kill(made[0].multipliers)))
    run.at(2, lambda: killed.append(kill(made[0].reference.handles[0])))
    run.at(3, lambda: kill_an_engine_that_sleeps(made[0]))
    run.at(4, random.start)
    run.at(STEPS, lambda: killed.append(kill(made[0].learner.handles[0])))
    try:
        run.go()
    finally:
        done.set()
        random.join()
    kinds = [each.kind for each in kills]
    groups = sum(kind not in ("rollout worker", "multiplier owner") for kind in kinds)
    assert (len(kinds), len(set(killed))) == (3, 5)
    assert not any(psutil.pid_exists(process) for process in killed)
    assert started[4:8] == ["learner", "signal-own", "signal-harm", "reference"]  # first all that is trained
    assert started[-1] == "learner"
    assert made[0].rollout.restarts == 1 + kinds.count("rollout worker")
    restarts = read_json(run.files.run_record)["restarts"]
    assert 3 + min(groups, 1) <= restarts <= 3 + groups  # fewer where two had died when one was noticed
    told = [line.rsplit(" ", 1)[-1] for line in run.screen.lines if "after step" in line]
    assert told[:4] == ["1", "0", "2", "2"]
    assert told[-2] == str(STEPS)
    assert told[-1] in ("6", "8")  # as far as checkpoints were written by then
    assert all(step["metrics"]["switch_s"] > 0 for step in read_jsonl(run.files.steps))
    assert run.result() == undisturbed


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
    """Each is named, shows its stack within the deadline, is ended and replaced. Then an engine dies in the middle of a
    broadcast. Nothing else changes.
    """
    monkeypatch.chdir(tmp_path)
    faults = Faults(tmp_path / "faults")
    mortal = ray.remote(mortal_while_loading(RolloutWorker, faults))
    monkeypatch.setattr("actors.rollout_pool.FinishingWorker", mortal)
    monkeypatch.setattr("trainers.rlhf.groups.ANSWER_S", 3.0)
    learner = {"ranks": 2, "engine": ENGINE, "ptx": {"data": {"limit": 20}, "batch_size": 4}, "timeout_s": 30}
    rollout = ROLLOUT | {"timeout_s": 15, "transfer": "gloo"}
    run = Run(tmp_path / "run", tiny_models, learner=learner, rollout=rollout)
    made, started = watched_groups(monkeypatch)
    calls = []

    def plant(what, *handles):
        calls.extend(handle.__ray_call__.remote(what) for handle in handles)

    run.at(1, lambda: plant(sleep, *made[0].rollout.workers))
    run.at(2, lambda: plant(sleep, made[0].learner.handles[1], made[0].reference.handles[0]))
    run.at(2, lambda: plant(wait_for_itself, made[0].signals["harm"].handles[0]))
    run.at(3, lambda: plant(sleep_in_the_next_update, made[0].multipliers))
    run.at(4, lambda: faults.arm(1, where="loading"))
    run.go()
    assert (len(calls), faults.struck()) == (5, 1)
    assert (made[0].rollout.restarts, read_json(run.files.run_record)["restarts"]) == (2, 1)
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


class Node:
    """A node more in the cluster of the session, with room for so many ranks of a learner, and engines."""

    def __init__(self, name, ranks, engines):
        self.place = Path("/tmp") / f"castor-{os.getpid()}-{name}"  # the paths of Ray's sockets must stay short
        address = ray.get_runtime_context().gcs_address
        command = [RAY, "start", f"--address={address}", "--num-cpus=1"]
        command += [f'--resources={{"rank": {ranks}, "engine": {engines}}}']
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
    """A rank and the engine are lost with it. The learner goes on with one rank, and with two again: to rounding, the
    numbers are those of two. The engine comes back on a third node. Neither needs a restart of those that are allowed.
    """
    monkeypatch.chdir(tmp_path)
    learner = {"ranks": 2, "engine": ENGINE | {"zero_stage": 3}, "ptx": {"data": {"limit": 20}, "batch_size": 4}}
    learner |= {"rejoin_s": 15, "resources": {"cpus": 0.25, "custom": {"rank": 1}}}
    rollout = ROLLOUT | {"max_worker_restarts": 0, "resources": {"cpus": 0.25, "custom": {"engine": 1}}}
    run = Run(tmp_path / "run", tiny_models, learner=learner, rollout=rollout, max_restarts=0)
    made, started = watched_groups(monkeypatch)
    nodes, killed, sizes = [Node("a", ranks=1, engines=0), Node("b", ranks=1, engines=1)], [], []

    def lose_a_node():
        killed.append(nodes[1].kill())
        nodes.append(Node("c", ranks=0, engines=1))

    def add_a_node():
        sizes.append(len(made[0].learner.handles))
        nodes.append(Node("d", ranks=1, engines=0))
        deadline = time.monotonic() + 300
        while not made[0].grown():
            assert time.monotonic() < deadline

    try:
        run.at(1, lose_a_node)
        run.at("goes on after step 0", add_a_node)
        run.at(STEPS, lambda: sizes.append(len(made[0].learner.handles)))
        run.go()
    finally:
        for node in nodes:
            node.kill()
    assert killed[0] > 0
    assert sizes == [1, 2]
    assert read_json(run.files.run_record)["restarts"] == 1  # no new rank was placed on the node that was gone
    assert started.count("learner") == 3
    assert made[0].rollout.restarts == 1
    assert "learner goes on with 1 of 2 ranks" in caplog.text
    assert "run: ranks that were missing are back" in run.screen.lines
    for calm, other in zip(undisturbed[0], run.numbers(), strict=True):
        for name in ("actor_loss", "kl", "own/critic_loss", "harm/critic_loss", "ptx_loss", "grad_norm"):
            assert other["metrics"][name] == pytest.approx(calm["metrics"][name], rel=2e-3, abs=1e-4), (
                calm["step"],
                name,
            )
    assert run.ledger() == undisturbed[3]
