"""An RLHF run that is cut short, and the same run that is not: the same numbers, weights and data."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from castor.io.errors import CastorError
from castor.run.checkpoints import Checkpoints
from castor.run.remote import RemoteCheckpoints
from tests.chaos.rlhf_run import STEPS, Run
from tests.conftest import ROOT

KILLED = """
import os, signal, sys, time
from types import SimpleNamespace
from pathlib import Path
from actors.cluster import cluster
from castor.config.cluster import RayCluster
from castor.run.remote import RemoteCheckpoints
from tests.chaos.rlhf_run import Run

folder, bucket, policy, reward, cost = sys.argv[1:]
os.chdir(Path(folder).parent)
models, options = SimpleNamespace(policy=policy, reward=reward, cost=cost), {"every_steps": 1, "keep": 9, "url": bucket}
run = Run(Path(folder), models, checkpoint=options)

def die_when_one_is_copied(text):
    time.sleep(0.3)  # a step without it may take less than a copy
    if RemoteCheckpoints(bucket, "run", "run").newest() is not None:
        os.kill(os.getpid(), signal.SIGKILL)

run.screen.line = die_when_one_is_copied
with cluster(RayCluster(num_cpus=4)):
    run.go()
"""


def test_a_driver_that_is_killed_a_disk_that_is_lost_a_judge_that_fails_and_the_same_command(
    undisturbed, tiny_models, tmp_path, monkeypatch
):
    """It goes on from the copy of the last checkpoint before the kill, and from the last step before the judge failed,
    though no checkpoint was due.
    """
    folder, bucket = tmp_path / "run", f"file://{tmp_path / 'bucket'}"
    command = [sys.executable, "-c", KILLED, str(folder), bucket]
    killed = subprocess.run(
        [*command, tiny_models.policy, tiny_models.reward, tiny_models.cost],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=600,
        check=False,
        stderr=subprocess.DEVNULL,
    )
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)
    run = Run(folder, tiny_models, checkpoint={"every_minutes": 600, "url": bucket})
    kept = [each.step for each in Checkpoints(run.files.training).all()]
    copied = RemoteCheckpoints(bucket, "run", "run").newest()
    failing = copied + 2
    assert copied in kept
    assert failing < STEPS
    with pytest.raises(CastorError, match=rf"run was cut short after step {kept[-1]}, .*: steps 10 -> 5\. Undo that"):
        Run(folder, tiny_models, steps=5).go()
    shutil.rmtree(run.files.training.folder)  # the disk is lost with its node

    run.at(failing, run.flag.touch)
    with pytest.raises(Exception, match="the judge is out of order"):
        run.go()
    assert run.screen.lines[:2] == [
        f"run: the state after step {copied} is back from {bucket}/run/run",
        f"run goes on after step {copied} of {STEPS}",
    ]
    assert f"the same command goes on after step {failing} of run" in run.screen.lines[-1]
    assert [each.step for each in Checkpoints(run.files.training).all()] == [copied, failing]
    run.flag.unlink()
    run.go()
    assert f"run goes on after step {failing} of {STEPS}" in run.screen.lines
    assert run.result() == undisturbed
    assert not run.files.training.folder.exists()
