"""Scores of experience: from the policy's tokens, and from the texts that came with them."""

import numpy as np
import pytest
import torch

from castor.config.data import DataSource
from castor.config.demo_model import DemoModel
from castor.config.training import Engine
from castor.data.rows.load import stream_demonstrations
from castor.data.sources.report import RowReport
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from castor.models.load import load_score_model
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from castor.scoring.experience_scorer import TextScorer, TokenScorer, model_scorer
from tests.numerics import TINY_MODELS, assert_close

ENGINE = Engine(micro_batch_tokens=200, pack_length=64)


@pytest.fixture(scope="module")
def exchanges():
    rows = list(stream_demonstrations(DataSource(limit=600), RowReport()))
    return [(row.prompt, row.response) for row in rows]


@pytest.fixture(scope="module")
def bpe_reward(tmp_path_factory, exchanges):
    """A score model with byte-level BPE, where the policy has words."""
    folder = tmp_path_factory.mktemp("bpe")
    config = DemoModel(tokenizer="bpe", hidden_size=32, intermediate_size=48, heads=2, max_position_embeddings=300)
    make_demo_model(config, (text for pair in exchanges for text in pair), 0, folder / "lm")
    torch.manual_seed(2)
    model = ScoreModel.from_backbone(str(folder / "lm"), ScoreInfo("reward", 0.1, 2.0), torch.float32)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    save_score_model(folder / "reward", model.backbone, weights, model.info, str(folder / "lm"))
    return str(folder / "reward")


def template_of(model):
    return PromptTemplate(load_tokenizer(model))


def as_experience(template, exchanges):
    heads = [template.encode_prompt(prompt) for prompt, _ in exchanges]
    tails = [template.encode_response(response) for _, response in exchanges]
    total = sum(map(len, tails))
    return Experience(
        uids=np.arange(len(exchanges)),
        prompts=tuple(prompt for prompt, _ in exchanges),
        tokens=np.concatenate([np.array([*head, *tail], np.int32) for head, tail in zip(heads, tails, strict=True)]),
        prompt_lengths=np.array([len(head) for head in heads], np.int32),
        response_lengths=np.array([len(tail) for tail in tails], np.int32),
        logprobs=np.full(total, -1.0, np.float32),
        versions=np.zeros(total, np.int32),
        truncated=np.zeros(len(exchanges), bool),
    )


def known_words(template, exchanges, count):
    """Exchanges whose response has no word the tokenizer does not know, which would come back as the unknown token."""
    unknown = template.tokenizer.unk_token_id
    return [pair for pair in exchanges if unknown not in template.encode_response(pair[1])][:count]


@torch.no_grad()
def direct(model, exchanges, kind="auto"):
    """Scores of the texts themselves, one by one."""
    frozen, template = load_score_model(model, torch.float32).eval(), PromptTemplate(load_tokenizer(model), kind)
    scores = []
    for pair in exchanges:
        packed = Samples(template, [[pair]], 10_000).pack(np.array([0]), 10_000)
        scores.append(float(frozen(packed.rows, packed.last_positions())))
    return scores


def test_a_model_with_another_tokenizer_scores_the_text_itself(tiny_models, bpe_reward, exchanges):
    policy, template = ModelReference(tiny_models.policy), template_of(tiny_models.policy)
    chosen = known_words(template, exchanges, 24)
    scorer = model_scorer(bpe_reward, ENGINE, policy)
    assert isinstance(scorer, TextScorer)
    scores = scorer.score(as_experience(template, chosen))
    assert scores.dtype == np.float32
    assert_close(scores, direct(bpe_reward, chosen), TINY_MODELS)


def test_a_format_of_its_own_is_used(tiny_models, bpe_reward, exchanges):
    policy, template = ModelReference(tiny_models.policy), template_of(tiny_models.policy)
    chosen = known_words(template, exchanges, 6)
    scores = model_scorer(bpe_reward, ENGINE, policy, template="pku").score(as_experience(template, chosen))
    assert_close(scores, direct(bpe_reward, chosen, "pku"), TINY_MODELS)
    assert not np.allclose(scores, direct(bpe_reward, chosen), atol=1e-3)


def test_a_model_with_the_policys_tokenizer_reads_its_tokens(tiny_models, exchanges):
    policy, template = ModelReference(tiny_models.policy), template_of(tiny_models.policy)
    scorer = model_scorer(tiny_models.cost, ENGINE, policy)
    assert isinstance(scorer, TokenScorer)
    scores = scorer.score(as_experience(template, exchanges[:9]))
    assert_close(scores, direct(tiny_models.cost, exchanges[:9]), TINY_MODELS)


def test_a_text_too_long_for_the_other_tokenizer_is_an_error(tiny_models, bpe_reward):
    template = template_of(tiny_models.policy)
    word = next(word for word in ("the", "a", "how") if word in template.tokenizer.get_vocab())
    scorer = model_scorer(bpe_reward, ENGINE, ModelReference(tiny_models.policy))
    long = [(word, " ".join([word] * 400))]
    with pytest.raises(CastorError, match=r"tokens, more than .*'s context of 300 .*rollout\.max_new_tokens"):
        scorer.score(as_experience(template, long))


def test_texts_reach_the_judge_as_they_were(tiny_models, exchanges):
    """The prompt's text, too, of which the policy's tokens may hold unknown words."""
    template, seen = template_of(tiny_models.policy), []
    texts = [("a word nobody knows: xyzzy §🙂", exchanges[0][1]), *known_words(template, exchanges, 5), ("empty", "")]

    def judge(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return [float(len(response)) for response in responses]

    scores = TextScorer(judge, template.tokenizer).score(as_experience(template, texts))
    assert seen == texts
    assert scores.tolist() == [len(response) for _, response in texts]
