"""Weights by collectives into real vLLM engines: what arrives, and what happens when an engine dies or falls silent."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray._private.internal_api import memory_summary
from safetensors.torch import load_file, save_file

from actors.group import ActorGroup, get
from actors.rollout import RolloutWorker
from actors.rollout_pool import RolloutPool
from actors.weight_transfer import WeightTransfer
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import LoRA
from engines.weights.base import sender_class
from tests.faults import Faults, mortal, mortal_while_loading
from tests.integration.test_rollout import collect, hf_logprobs, requests
from tests.numerics import TINY_MODELS, assert_close

TIMEOUT_S = 15.0
MOVING = "model.layers.1."
RANK = 64  # the tiny model's width: an adapter of this rank can be any change of a matrix


def weights_of(folder):
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


@ray.remote(num_cpus=0)
class FolderLearner:
    """Sends as a learner does, weights of folders: version v is that of folder v modulo their number.

    With `lora` it sends the first folder as a base, and an adapter that makes the other one of it. A stroke ends or
    stops a process once `after` tensors of the next version are gathered.
    """

    def __init__(self, folders, lora):
        self.folders, self.lora = folders, lora
        self.senders = {"host": sender_class("host")(True)}
        self.senders |= {name: sender_class(name)(True, 20_000) for name in ("gloo", "ipc")}
        self.version, self.bases, self.stroke, self.sent = 0, {}, None, []

    def invite(self, transport, workers, timeout_s):
        return self.senders[transport].invite("127.0.0.1", workers, timeout_s)

    def arm(self, process, number, after):
        self.stroke = process, number, after

    def publish(self, version=None, invitation=None):
        self.version = version or self.version
        sender = self.senders[invitation.transport if invitation else "host"]
        if invitation:
            sender.accept(invitation)
        if not self.lora:
            return sender.send(self._counted(weights_of(self.folders[self.version % len(self.folders)])), self.version)
        if sender.route not in self.bases:
            self.bases[sender.route] = sender.send(self._counted(weights_of(self.folders[0])), 0)
        return sender.send(self._counted(self._adapter()), self.version, self.bases[sender.route])

    def _adapter(self):
        first, other = (weights_of(folder) for folder in (self.folders[0], self.folders[self.version % 2]))
        factors = {}
        for name in (name for name, tensor in first.items() if name.startswith(MOVING) and tensor.ndim == 2):
            change, layer = other[name] - first[name], name.removesuffix(".weight")
            wide = change.shape[1] > RANK
            factors[f"{layer}.lora_A.weight"] = change if wide else torch.eye(RANK)
            factors[f"{layer}.lora_B.weight"] = torch.eye(RANK) if wide else change
        return factors

    def _counted(self, tensors):
        for place, pair in enumerate(tensors.items()):
            if self.stroke is not None and place == self.stroke[2]:
                process, number, _ = self.stroke
                self.stroke = None
                os.kill(process, number)
            yield pair
        self.sent.append(len(tensors))

    def gathered(self):
        """Tensors of each stream so far."""
        return self.sent


@pytest.fixture(scope="module")
def folders(tiny_models, tmp_path_factory):
    """The policy, and the same with the matrices of its last layer times 1.5: version 1 is the other one."""
    other = tmp_path_factory.mktemp("changed") / "policy"
    shutil.copytree(tiny_models.policy, other)
    (file,) = other.glob("*.safetensors")
    changed = {name: t * 1.5 if name.startswith(MOVING) and t.ndim == 2 else t for name, t in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    return [tiny_models.policy, str(other)]


def config(transport, engine="inproc", workers=2, lora=False, **rollout):
    return RLHF(
        steps=1,
        prompts_per_step=4,
        signals={"help": Signal(role="objective", model="reward")},
        policy={"lora": LoRA(rank=RANK) if lora else None},
        rollout=Rollout(
            workers=workers, engine=engine, max_prompt_tokens=64, max_new_tokens=16, chunk_size=4, max_num_seqs=16,
            kv_cache_mib=64, transfer=transport, transfer_timeout_s=TIMEOUT_S, max_worker_restarts=8,
            **rollout,
        ),
    )  # fmt: skip


class Setting:
    """A pool, its learner, and the way between them."""

    def __init__(self, folders, rlhf):
        self.folders = folders
        self.learner = ActorGroup("learner", [FolderLearner.remote(folders, rlhf.policy.lora is not None)])
        self.pool = RolloutPool(folders[0], rlhf.rollout, lora=rlhf.sampled_adapter)
        self.transfer = WeightTransfer(rlhf, self.learner, self.pool)
        self.pool.wait_ready()

    def publish(self, version):
        self.transfer.publish(version, get)

    def check(self, version, wanted):
        """Every engine samples with the weights of `version`."""
        experience = collect(self.pool, wanted)
        assert set(experience.versions.tolist()) == {version}
        assert_close(
            experience.logprobs, hf_logprobs(self.folders[version % len(self.folders)], experience), TINY_MODELS
        )
        return experience

    def ask(self, method, *args):
        return get(getattr(self.learner.handles[0], method).remote(*args), 60, method)

    def stop(self):
        self.pool.stop()
        self.learner.stop()


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def inproc(ray_session, folders, faults):
    worker = ray.remote(mortal_while_loading(mortal(RolloutWorker, faults), faults))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.rollout_pool.FinishingWorker", worker)
        setting = Setting(folders, config("gloo"))
        yield setting
        setting.stop()


def test_all_engines_prove_what_was_broadcast_and_sample_from_it(inproc, tokenised_prompts):
    wanted = requests(tokenised_prompts, 8)
    inproc.publish(1)
    circle = inproc.transfer.circle
    one = inproc.check(1, wanted)
    inproc.publish(2)
    other = inproc.check(2, wanted)
    assert one.tokens.tolist() != other.tokens.tolist()
    assert inproc.transfer.circle is circle  # the same group
    assert inproc.pool.restarts == 0


@pytest.mark.parametrize(("number", "version"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 5)], ids=["killed", "stopped"])
def test_an_engine_lost_in_mid_transfer_is_replaced_and_the_others_go_on(
    inproc, faults, tokenised_prompts, monkeypatch, number, version
):
    before, struck = inproc.pool.restarts, faults.struck()
    faults.arm(1, number, "loading")
    inproc.publish(version)
    assert (faults.struck(), inproc.pool.restarts) == (struck + 1, before + 1)
    inproc.check(version, requests(tokenised_prompts, 8))  # whether or not the replacement is up already
    monkeypatch.setattr("actors.workforce.ANSWER_S", 300.0)  # the next transfer waits for the replacement
    inproc.publish(version + 1)
    assert len(inproc.pool.workers) == 2
    inproc.check(version + 1, requests(tokenised_prompts, 8))


def test_engines_that_all_die_while_they_sample_are_replaced_with_the_current_weights(
    inproc, faults, tokenised_prompts
):
    version, wanted, struck = inproc.pool.version, requests(tokenised_prompts, 24), faults.struck()
    undisturbed = inproc.check(version, wanted)
    faults.arm(2)
    again = inproc.check(version, wanted)
    assert faults.struck() == struck + 2
    assert again.tokens.tolist() == undisturbed.tokens.tolist()
    inproc.publish(version + 1)
    inproc.check(version + 1, wanted)


@pytest.fixture(scope="module")
def apart(ray_session, folders):
    """An engine with a process of its own, which reads the learner's buckets where they lie."""
    setting = Setting(folders, config("ipc", "async", 1, lora=True, adapters="apart"))
    yield setting
    setting.stop()


def test_an_engine_in_a_process_of_its_own_gets_the_base_once(apart, tokenised_prompts):
    for version in (1, 2, 3):
        apart.publish(version)
        apart.check(version, requests(tokenised_prompts, 8))
    base, one, two, three = apart.ask("gathered")
    assert base > one == two == three > 0
    assert apart.pool.restarts == 0


def test_an_engine_process_that_falls_silent_in_mid_transfer_is_replaced(apart, tokenised_prompts):
    apart.publish(4)
    before, gathered = apart.pool.restarts, len(apart.ask("gathered"))
    (worker,) = apart.pool.workers
    ((_, *engine),) = [get(worker.processes.remote(), 60, "processes").started]
    (victim,) = (process for process, _ in engine if "EngineCore" in psutil.Process(process).name())
    apart.ask("arm", victim, signal.SIGSTOP, 3)
    apart.publish(5)
    assert apart.pool.restarts == before + 1
    assert not Path(f"/proc/{victim}").exists()
    apart.check(5, requests(tokenised_prompts, 8))
    assert len(apart.ask("gathered")) == gathered + 1 + 2  # another group gets the base, too


def test_weights_on_their_way_stay_in_memory(ray_session):
    sender = sender_class("host")(keep=True)
    tensor = torch.ones(64 << 20, dtype=torch.bfloat16)
    held = [sender.send([("weight", tensor)], version) for version in (1, 2, 3)]
    store = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    assert "Plasma memory usage" in store
    assert "Spilled" not in store  # to disk, for which the sender would have waited
    assert len({update.digest for update in held}) == 1


def test_every_worker_of_a_tensor_parallel_engine_takes_its_part(ray_session, folders, tokenised_prompts):
    setting = Setting(folders, config("gloo", workers=1, tensor_parallel_size=2))
    try:
        setting.check(0, requests(tokenised_prompts, 8))
        setting.publish(1)
        setting.check(1, requests(tokenised_prompts, 8))
        update = setting.ask("publish", 2)  # without a group, through host memory: as a replacement gets them
        setting.pool.load_weights(update)
        setting.check(2, requests(tokenised_prompts, 8))
    finally:
        setting.stop()
