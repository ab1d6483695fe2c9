"""A vLLM engine in this process: one thread owns it, and a float32 head brings it closer to learner and reference."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from actors.folder_weights import FolderWeights
from actors.group import actor_options, get
from actors.learner import LearnerWorker
from actors.reference import ReferenceWorker
from actors.rollout import PromptRequest
from actors.rollout_pool import RolloutPool
from actors.step_batch import StepBatch
from castor.config.learner import Learner
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Resources
from castor.experience import Experience
from castor.models.attention import place
from castor.models.policy import PolicyModel
from engines.batch import make_micro_batch
from engines.vllm_arguments import VLLM_ENV
from tests.plans import spmd_group

CONFIG = Rollout(max_prompt_tokens=64, max_new_tokens=60, max_num_seqs=16, kv_cache_mib=64)


@ray.remote
class Watched:
    """An engine that notes what is done with it, in order, and on which thread."""

    def __init__(self, model):
        import threading

        import vllm

        from engines.vllm_engine import InprocEngine, rollout_arguments

        self.threading, self.noted = threading, []

        class Noting(vllm.LLM):
            def __init__(noting, **kwargs):
                self.note("build")
                super().__init__(**kwargs)

            def collective_rpc(noting, method, *args, **kwargs):
                self.note(method)
                return super().collective_rpc(method, *args, **kwargs)

        vllm.LLM = Noting
        self.engine = InprocEngine(rollout_arguments(model, CONFIG, 124, False), CONFIG)

    def note(self, what):
        self.noted.append((what, self.threading.get_ident()))

    def watch(self, prompts, update):
        """Sample while another thread brings weights during the third step; what was noted, and every token's version.

        The third step goes on once the transfer waits.
        """
        import time

        from engines.vllm_engine import Request

        core, loader = self.engine.llm.llm_engine, self.threading.Thread(target=self.engine.load_weights, args=[update])
        step = core.step

        def noting():
            self.note("step")
            if [what for what, _ in self.noted].count("step") == 3:
                loader.start()
                time.sleep(1.0)
            return step()

        core.step = noting
        requests = [Request(uid, prompt, uid) for uid, prompt in enumerate(prompts)]
        versions = [version for response in self.engine.generate(requests) for version in response.versions]
        loader.join(60)
        return self.noted, versions, {self.threading.get_ident(), loader.ident}


def test_one_thread_builds_steps_and_loads_and_a_waiting_transfer_goes_first(ray_session, tiny_models):
    source = FolderWeights.remote()
    update = get(source.publish.remote(tiny_models.policy, 1), 120, "publish")
    watched = Watched.options(**actor_options(Resources(), "watched", **VLLM_ENV)).remote(tiny_models.policy)
    try:
        noted, versions, callers = get(watched.watch.remote([[5, 6, 7], [8, 9, 10, 11]], update), 600, "watch")
    finally:
        ray.kill(watched)
    done = [what for what, _ in noted]
    third = [place for place, what in enumerate(done) if what == "step"][2]
    loading = ["start_weight_update", "update_weights", "finish_weight_update", "loaded_digest"]
    assert (done[0], done[third + 1 : third + 5], done[third + 5]) == ("build", loading, "step")
    assert set(versions) == {0, 1}
    threads = {thread for _, thread in noted}
    assert len(threads) == 1
    assert not threads & callers


def test_the_process_of_an_engine_is_no_fork():
    """A fork of a process that has only asked how many GPUs there are can use none of them."""
    asks = "from vllm.utils.system_utils import get_mp_context; print(get_mp_context().get_start_method())"
    done = subprocess.run(
        [sys.executable, "-c", asks], env=os.environ | VLLM_ENV, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split()[-1] == "spawn"


@pytest.fixture(scope="module")
def confident(tiny_models, tmp_path_factory):
    """The tiny policy with logits that a trained one has: up to about 20, where bfloat16 has steps of an eighth."""
    folder = tmp_path_factory.mktemp("confident") / "policy"
    shutil.copytree(tiny_models.policy, folder)
    (file,) = Path(folder).glob("*.safetensors")
    weights = load_file(file)
    weights["lm_head.weight"] = weights["lm_head.weight"] * 40
    save_file(weights, file, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def experiences(ray_session, confident, tokenised_prompts):
    """Samples of a bfloat16 engine, by the type of its head."""
    wanted = [PromptRequest(uid, tokenised_prompts[uid], 1000 + uid) for uid in range(16)]
    configs = {
        head: CONFIG.model_copy(update={"dtype": "bfloat16", "head_dtype": head}) for head in ("model", "float32")
    }
    pools = {head: RolloutPool(confident, config) for head, config in configs.items()}  # they start at the same time
    found = {}
    try:
        for head, pool in pools.items():
            pool.wait_ready()
            chunks = Experience.concatenate([ray.get(chunk.experience) for chunk in pool.generate(wanted)])
            found[head] = chunks.select(chunks.uids.argsort())
    finally:
        for pool in pools.values():
            pool.stop()
    return found


def logprobs(model, head_dtype, experience):
    """Of the response tokens, from a bfloat16 policy."""
    cpu = torch.device("cpu")
    policy = place(PolicyModel.load(model, torch.bfloat16, head_dtype=head_dtype).eval(), cpu)
    micro = make_micro_batch(experience, np.arange(len(experience)), {}, 512, cpu)
    with torch.no_grad():
        return policy(micro.rows, micro.response_positions).numpy()


def test_float32_logits_on_both_sides_bring_an_engine_and_a_policy_together(confident, experiences):
    found = {
        (ours, theirs): float(np.sqrt(((logprobs(confident, ours, experience) - experience.logprobs) ** 2).mean()))
        for theirs, experience in experiences.items()
        for ours in experiences
    }
    both = found.pop(("float32", "float32"))
    assert all(both < 0.9 * gap for gap in found.values()), (both, found)


def test_the_option_reaches_the_reference_and_the_learner(confident, experiences):
    experience, engine = experiences["float32"], Engine(dtype="bfloat16", pack_length=512)
    expected = logprobs(confident, "float32", experience)
    config = RLHF(
        steps=1,
        signals={"help": Signal(role="objective", model="unused", critic=engine)},
        rollout=Rollout(head_dtype="float32"),
        learner=Learner(engine=engine, logprob_gap_alarm=1e9),
    )
    reference = ReferenceWorker.remote()
    get(reference.load.remote(confident, config), 300, "load")
    frozen = get(reference.logprobs.remote(experience), 300, "reference")
    ray.kill(reference)
    group = spmd_group("learner", LearnerWorker, 1)
    try:
        group.join(120)
        get(group.call("load", confident, config, 0, "auto", None), 300, "load")
        batch = StepBatch([ray.put(experience)], [ray.put(frozen)], {"help": []})
        advantages = {"help": ray.put(np.zeros(len(frozen), np.float32))}
        metrics = get(group.call("step", 1, batch, advantages, None), 300, "step")[0]
    finally:
        group.stop()
    other = logprobs(confident, "model", experience)
    assert np.abs(frozen - expected).mean() < 0.5 * np.abs(frozen - other).mean()
    gap, other_gap = (float(np.abs(ours - experience.logprobs).mean()) for ours in (expected, other))
    assert gap < 0.9 * other_gap
    assert metrics["logprob_gap_mean"] == pytest.approx(gap, rel=0.05)  # packed otherwise, so rounded otherwise


@ray.remote(max_calls=1)  # its process is of no use to others
def look_at_a_class(folder: Path) -> bool:
    """As a home does that has seen no model, where no other Python can be started."""
    from vllm import ModelRegistry

    from engines.vllm_registry import import_model_class

    def refused(*_, **__):
        raise PermissionError

    os.environ["VLLM_CACHE_ROOT"] = str(folder / "cache")
    subprocess.run = refused
    with pytest.raises(PermissionError):
        ModelRegistry.models["OPTForCausalLM"].inspect_model_cls()
    import_model_class(str(folder))  # nothing is there
    (folder / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM", "UnheardOf"]}))
    import_model_class(str(folder))
    return ModelRegistry.models["OPTForCausalLM"].inspect_model_cls().is_text_generation_model


def test_no_other_python_looks_at_the_class_of_a_model(ray_session, tmp_path):
    looking = look_at_a_class.options(runtime_env={"env_vars": VLLM_ENV}).remote(tmp_path)
    assert ray.get(looking, timeout=300)
