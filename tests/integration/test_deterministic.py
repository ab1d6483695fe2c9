"""`ray.deterministic`: every process of a run is told, and on a CPU no number changes."""

import json
import os
import subprocess
import sys

import pytest

from actors.group import get
from tests.conftest import ROOT
from tests.integration.test_engine_ranks import Rank
from tests.plans import spmd_group

SCRIPT = """
import json
from actors.cluster import cluster
from castor.config.cluster import RayCluster
from tests.integration.test_deterministic import train

with cluster(RayCluster(num_cpus=2, deterministic=True)):
    print(json.dumps(train()))
"""


def train():
    """Losses and norms of two ranks, and what they were told."""
    group = spmd_group("rank", Rank, 2)
    try:
        group.join(120)
        get(group.call("make", 2, "bfloat16"), 300, "make")
        rows = get(group.call("train", 0, 2), 300, "train")
        return [rows, get(group.call("determinism"), 60, "determinism")]
    finally:
        group.stop()


@pytest.fixture(scope="module")
def runs(ray_session):
    """With and without, at the same time."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            without = train()
            printed, errors = process.communicate(timeout=600)
        finally:
            process.terminate()
    assert process.returncode == 0, errors
    return {"yes": json.loads(printed.splitlines()[-1]), "no": json.loads(json.dumps(without))}


def test_every_process_is_told_and_what_trains_obeys(runs):
    told = {"VLLM_BATCH_INVARIANT": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "algorithms": True}
    assert runs["yes"][1] == [told, told]
    assert runs["no"][1] == [{"VLLM_BATCH_INVARIANT": None, "CUBLAS_WORKSPACE_CONFIG": None, "algorithms": False}] * 2


def test_on_a_cpu_the_numbers_stay(runs):
    assert runs["yes"][0] == runs["no"][0]
