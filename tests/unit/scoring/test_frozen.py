"""The frozen scorer: order, budgets, and what it says of a number that is none."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor.config.judge import Classifier
from castor.config.training import Engine
from castor.data.rows.schemas import Exchange
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from castor.models.load import load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel, export_classifier, save_moderation_model
from castor.models.score import save_score_model
from castor.packing import pack_rows
from castor.scoring.experience_scorer import model_scorer
from castor.scoring.frozen import FrozenModel, in_micro_batches
from castor.scoring.moderator import Moderator
from castor.scoring.text_model import TextModel, TooLongError

LENGTHS = st.lists(st.integers(1, 30), min_size=0, max_size=20)


@given(LENGTHS, st.integers(1, 60), st.data())
def test_outputs_come_back_in_order_whatever_the_budget(lengths, budget, data):
    sizes = np.array(lengths, dtype=np.int64)
    counts = np.array([data.draw(st.integers(0, 3)) for _ in lengths], dtype=np.int64)
    told, batches = [], []

    def forward(chosen):
        batches.append(sizes[chosen])
        return torch.tensor([[100 * i + k, i] for i in chosen for k in range(counts[i])]).reshape(-1, 2)

    found = in_micro_batches(sizes, budget, forward, counts, lambda *done: told.append(done))
    assert found.dtype == np.float32
    assert found.tolist() == [[100 * i + k, i] for i, count in enumerate(counts) for k in range(count)]
    assert all(batch.sum() <= budget or len(batch) == 1 for batch in batches)
    assert told[-1] == (len(lengths), len(lengths))


@torch.no_grad()
def test_scores_are_those_of_each_sequence_alone(tiny_models):
    rng, model = np.random.default_rng(0), load_score_model(tiny_models.reward, torch.float32).eval()
    sequences = [rng.integers(0, 300, length).astype(np.int32) for length in (5, 40, 1, 17, 17, 60)]
    alone = [
        float(model(pack_rows(tokens, np.array([len(tokens)]), 1), torch.tensor([len(tokens) - 1])))
        for tokens in sequences
    ]
    for budget, width in ((1, None), (64, None), (10_000, 64), (10_000, 8)):
        frozen = FrozenModel.load_scores(tiny_models.reward, "float32", budget, width)
        np.testing.assert_allclose(frozen.unchecked_outputs(sequences), alone, atol=1e-5)
    assert frozen.unchecked_outputs([]).shape == (0,)
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


@pytest.fixture(scope="module")
def damaged(tiny_models, tmp_path_factory):
    """A reward model that gives NaN."""
    folder = tmp_path_factory.mktemp("damaged") / "reward"
    model = load_score_model(tiny_models.reward, torch.float32)
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    weights["score_head.weight"][0, 0] = float("nan")
    save_score_model(folder, model.backbone, weights, model.info, tiny_models.policy)
    return str(folder)


def test_a_number_that_is_none_names_model_and_text(tiny_models, damaged):
    message = rf"^{damaged} gives 2 of 2 texts a number that is not finite \(first: prompt 'who \?'\)"
    frozen = FrozenModel.load_scores(damaged, "float32", 100)
    texts = [Exchange("who ?", "me"), Exchange("why ?", "so")]
    with pytest.raises(CastorError, match=message):
        TextModel.around(frozen, damaged, "auto").outputs(texts)
    experience = Experience(
        uids=np.arange(2),
        prompts=("who ?", "why ?"),
        tokens=np.arange(8, dtype=np.int32),
        prompt_lengths=np.array([2, 3], np.int32),
        response_lengths=np.array([1, 2], np.int32),
        logprobs=np.zeros(3, np.float32),
        versions=np.zeros(3, np.int32),
        truncated=np.zeros(2, bool),
    )
    for template in (None, "pku"):  # from tokens and from texts
        scorer = model_scorer(damaged, Engine(), ModelReference(tiny_models.policy), template=template)
        with pytest.raises(CastorError, match=message):
            scorer.score(experience)


def test_what_does_not_fit_is_an_error_or_left_out(tiny_models):
    model = TextModel.around(FrozenModel.load_scores(tiny_models.cost, "float32", 500), tiny_models.cost, "auto")
    texts = [
        Exchange("who ?", "me"),
        Exchange("who ?", "me", (("a " * 90, "b " * 80),)),  # longer than the context by its history alone
        Exchange("a b c d e f g h", "me"),
    ]
    with pytest.raises(TooLongError, match=rf"more than {tiny_models.cost}'s context of {model.context}"):
        model.outputs(texts)
    kept, scores = model.outputs_of_fitting(texts, max_length=8)
    assert kept.tolist() == [True, False, False]
    np.testing.assert_allclose(scores, model.outputs(texts[:1]), atol=1e-6)
    kept, scores = model.outputs_of_fitting(texts, max_length=1)
    assert (kept.any(), scores.shape) == (False, (0,))


def test_a_published_classifier_reads_prompt_and_response_in_one_piece(tiny_models, tmp_path):
    """It was trained so; a moderation model of ours was not. As a judge of verdicts and as a cost."""
    info = ModerationInfo.fresh("pku", "pair", severity=False)
    model = ModerationModel.from_backbone(tiny_models.policy, info, torch.float32)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    save_moderation_model(tmp_path / "ours", model.backbone, weights, info, tiny_models.policy)
    for name in ("exported", "published"):
        export_classifier(tmp_path / "ours", tmp_path / name)
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    del config["castor"]  # as somebody else would have published it
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))
    for name, one_piece in (("ours", False), ("exported", False), ("published", True)):
        folder = str(tmp_path / name)
        cost = FrozenModel.load_scores(folder, "float32", 100, classifier=Classifier())
        assert TextModel.around(cost, folder, "pku").one_piece is one_piece
        assert Moderator(folder, "pku").text_model.one_piece is one_piece
