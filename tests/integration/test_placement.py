"""Ray gives every actor of the 8B presets a GPU of its own or the share it was planned, on one node and on two."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import torch

from tests.conftest import ROOT

PRESETS = sorted((ROOT / "configs" / "llama-8b").glob("*.yaml"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one node", "two nodes"])
def found(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("placement") / "found.json"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_worker_niceness": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    command = [sys.executable, "-m", "tests.fake_gpus", str(request.param), str(output), *map(str, PRESETS)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return request.param, json.loads(output.read_text())


def test_every_bundle_of_every_preset_is_placed(found):
    nodes, placed = found
    stages = [stage for stage in placed["stages"].values() if stage["bundles"]]
    assert len(stages) >= 3 * len(PRESETS) * (3 - nodes)  # on one node also in turns
    for stage in stages:
        used = defaultdict(int)
        for bundle in stage["bundles"]:
            used[bundle["node"]] += bundle["gpus"]
        assert len(used) <= nodes
        assert max(used.values()) <= 8


def test_every_actor_has_the_gpus_of_its_bundle_and_shares_them_with_no_other(found):
    _, placed = found
    started = {name: stage for name, stage in placed["stages"].items() if stage["actors"]}
    assert len(started) == 1
    for name, stage in started.items():
        taken = set()
        for bundle in stage["bundles"]:
            places = [stage["actors"][member] for member in bundle["members"]]
            assert {place["node"] for place in places} == {bundle["node"]}, name
            assert {place["local_rank"] for place in places} == {0}  # an actor sees its own GPUs only
            seen = [gpu for place in places for gpu in place["visible"].split(",")]
            gpus = {(bundle["node"], gpu) for gpu in seen}
            assert len(gpus) == bundle["gpus"], (name, bundle)
            assert len(seen) == len(places) if bundle["gpus"] == 1 else len(seen) == bundle["gpus"]
            assert not gpus & taken, (name, bundle)
            taken |= gpus


def test_every_worker_of_ray_train_computes_on_the_gpu_it_was_given(found):
    nodes, placed = found
    workers = placed["train"]
    if nodes > 1:
        assert not workers
        return
    devices = {(place["node"], place["visible"].split(",")[place["local_rank"]]) for place in workers.values()}
    assert len(devices) == len(workers) == 2
    assert sorted(place["local_rank"] for place in workers.values()) == [0, 1]  # each sees the GPUs of all


def test_a_worker_that_is_left_to_the_next_stage_stays_where_it_is_as_long_as_that_wants_the_same(found):
    nodes, placed = found
    if nodes > 1:
        assert not placed["left"]
        return
    (first, second), end = placed["left"]
    assert (first.pop("new"), second.pop("new")) == (True, False)
    assert first == second  # node, GPU and placement group
    assert end == {"died": True, "group": "REMOVED"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_an_actor_that_torch_cannot_give_its_gpu_says_so(found):
    _, placed = found
    refusals = [stage["refusal"] for stage in placed["stages"].values() if stage["actors"]]
    assert all(refusal.startswith("Ray assigned GPU ") for refusal in refusals)
    assert all("torch cannot use it: Torch not compiled with CUDA enabled; install" in text for text in refusals)
