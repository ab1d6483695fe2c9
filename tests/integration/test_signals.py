"""Signals judged by a function and by a remote scorer, through actors, without and with a critic."""

import numpy as np
import pytest
import ray

from actors.group import get
from actors.signal import SignalModels, SignalWorker
from actors.step_batch import StepBatch
from castor.config.rlhf import RLHF
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from tests.numerics import assert_close
from tests.plans import spmd_group

MODULE = """
def length(prompts, responses): return [len(response.split()) for response in responses]
def broken(prompts, responses): return [0.0]
"""


def run(function, **options):
    critic = {"optimizer": {"lr_scheduler_type": "constant"}, "micro_batch_tokens": 200, "pack_length": 64}
    harm = {"role": "constraint", "function": function, "threshold": 3.0, "critic": critic, **options.pop("harm", {})}
    signals = {"help": {"role": "objective", "model": "unused"}, "harm": harm}
    return RLHF.model_validate({"steps": 1, "prompts_per_step": 4, "signals": signals, "multipliers": {}, **options})


@pytest.fixture
def experience(tiny_models, prompts):
    """Four prompts, two samples each, of 1 to 8 words."""
    template = PromptTemplate(load_tokenizer(tiny_models.policy))
    word = template.encode_response("the")[0]
    heads = [template.encode_prompt(prompts[uid // 2]) for uid in range(8)]
    tails = [[word] * (uid + 1) + [template.tokenizer.eos_token_id] for uid in range(8)]
    total = sum(map(len, tails))
    return Experience(
        uids=np.arange(8),
        prompts=tuple(prompts[uid // 2] for uid in range(8)),
        tokens=np.concatenate([np.array([*head, *tail], np.int32) for head, tail in zip(heads, tails, strict=True)]),
        prompt_lengths=np.array([len(head) for head in heads], np.int32),
        response_lengths=np.array([len(tail) for tail in tails], np.int32),
        logprobs=np.full(total, -1.0, np.float32),
        versions=np.zeros(total, np.int32),
        truncated=np.zeros(8, bool),
    )


def step(models, config, experience):
    group = spmd_group("signal", SignalWorker, 1)
    try:
        group.join(120)
        get(group.call("load", "harm", models, config, 0, 3.0), 300, "load")
        ref = group.handles[0].score.remote(ray.put(experience))
        scores = get(ref, 120, "score")
        batch = StepBatch([ray.put(experience)], [ray.put(experience.logprobs)], {"harm": [ref]})
        return (
            scores,
            get(group.call("advantages", batch), 120, "advantages")[0],
            get(group.call("train_critic", 1), 120, "train_critic")[0],
        )
    finally:
        group.stop()


def test_a_function_judges_with_and_without_a_critic(ray_session, tiny_models, experience, tmp_path):
    (tmp_path / "my_lengths.py").write_text(MODULE)
    text = ModelReference(tiny_models.policy)
    free = run("my_lengths:length", samples_per_prompt=2, advantage={"estimator": "leave_one_out", "kl_coeff": 0.0})
    scores, advantages, metrics = step(SignalModels(None, None, text, tmp_path), free, experience)
    assert scores.tolist() == list(range(1, 9))
    expected = np.repeat([-1.0, 1.0] * 4, experience.response_lengths)  # of two samples, one word apart
    assert_close(advantages, expected, summands=int(experience.response_lengths.max()))
    assert set(metrics) == {"score_mean", "score_positive_share"}

    gae = run("my_lengths:length", samples_per_prompt=2, harm={"critic_model": "stage:sft"})
    scores, advantages, metrics = step(SignalModels(None, tiny_models.policy, text, tmp_path), gae, experience)
    assert scores.tolist() == list(range(1, 9))
    assert advantages.shape == (int(experience.response_lengths.sum()),)
    assert metrics["critic_loss"] > 0


def test_an_error_of_the_function_reaches_the_user_in_one_sentence(ray_session, tiny_models, experience, tmp_path):
    (tmp_path / "my_broken.py").write_text(MODULE)
    config = run("my_broken:broken", samples_per_prompt=2, advantage={"estimator": "leave_one_out"})
    with pytest.raises(CastorError, match=r"^my_broken:broken returned 1 scores for 8 responses"):
        step(SignalModels(None, None, ModelReference(tiny_models.policy), tmp_path), config, experience)
