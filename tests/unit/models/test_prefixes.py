"""A text that grows, read on from where it ended: what the models give when they read all of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModel

from castor.config.judge import Classifier
from castor.models.attention import sequence_by_sequence, use_kernel
from castor.models.classifier_cost import ClassifierCost
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.models.prefixes import Continuation, Prefix, Prefixes
from castor.models.score import ScoreInfo, ScoreModel
from castor.scoring.frozen import FrozenModel
from tests.unit.models.test_attention import LEFT, SIZE, TAKEN


def frozen(name="llama", wrap=lambda backbone: ScoreModel(backbone, ScoreInfo("cost")), budget=64):
    kind, own = (TAKEN | LEFT)[name]
    torch.manual_seed(0)
    model = wrap(AutoModel.from_config(CONFIG_MAPPING[kind](**(SIZE | own))))
    return FrozenModel(name, model, torch.device("cpu"), budget).placed()


def moderation(backbone):
    return ModerationModel(backbone, ModerationInfo.fresh("pku", "pair", severity=True))


LLAMA = frozen()


@pytest.mark.parametrize("name", TAKEN)
def test_models_with_a_varlen_kernel_read_on(name):
    assert frozen(name).reads_on


@pytest.mark.parametrize("name", LEFT)
def test_others_do_not(name):
    assert not frozen(name).reads_on


def test_no_more_do_models_that_are_called_without_the_kernel():
    model = frozen().model
    model.packing = "masked"
    alone = FrozenModel("masked", model, torch.device("cpu"), 64)
    assert not alone.reads_on
    with pytest.raises(ValueError, match="only a varlen kernel"):
        alone.continued_outputs([np.array([2, 3])], [None])


@pytest.mark.parametrize("wrap", [moderation, lambda b: ClassifierCost(moderation(b), Classifier(reduce="max"))])
def test_moderation_models_do_too(wrap):
    model = frozen(wrap=wrap)
    assert model.reads_on
    tokens = np.arange(30) % 60
    _, before = model.continued_outputs([tokens[:20]], [None])
    found, _ = model.continued_outputs([tokens], before)
    np.testing.assert_allclose(found, model.unchecked_outputs([tokens]), rtol=1e-4, atol=1e-5)


TEXTS = st.lists(st.integers(0, 59), min_size=1, max_size=20)


@settings(max_examples=60)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_whatever_was_read_before_the_numbers_are_those_of_the_whole(streams, shared, data):
    """Each stream is a list of texts of which one may begin as the last one, or be another altogether; some are new."""
    before: list[Prefix | None] = [None] * len(streams)
    for turn in range(4):
        texts = []
        for stream in streams:
            last = stream[min(turn, len(stream) - 1)]
            begun = stream[min(turn, len(stream) - 1) - 1][: data.draw(st.integers(0, 20))] if shared else []
            texts.append(np.array(begun + last))
        found, after = LLAMA.continued_outputs(texts, before)
        np.testing.assert_allclose(found, LLAMA.unchecked_outputs(texts), rtol=1e-4, atol=1e-4)
        assert [prefix.tokens.tolist() for prefix in after] == [text.tolist() for text in texts]
        before = [prefix if data.draw(st.booleans()) else None for prefix in after]


def test_what_was_read_is_not_computed_again():
    tokens, sizes = np.arange(30), []
    model = frozen()
    model.model.backbone.layers[0].mlp.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    _, before = model.continued_outputs([tokens[:20]], [None])
    model.continued_outputs([tokens], before)
    changed = np.where(np.arange(30) < 8, tokens, 59)  # as when the last tokens of a text become others
    model.continued_outputs([changed], before)
    model.continued_outputs([tokens[:20]], before)  # the output of the last one is asked for
    assert sizes == [20, 10, 22, 1]


def test_a_kernel_is_told_of_more_keys_than_queries():
    told = []

    def telling(query, key, value, cuts, key_cuts, longest, longest_key, **options):
        told.append((len(query), len(key), cuts.tolist(), key_cuts.tolist(), longest, longest_key))
        return sequence_by_sequence(query, key, value, cuts, key_cuts, longest, longest_key, **options)

    score = ScoreModel(AutoModel.from_config(CONFIG_MAPPING["llama"](**SIZE)).eval(), ScoreInfo("cost"))
    assert use_kernel(score, telling)
    model = FrozenModel("told", score, torch.device("cpu"), 64)
    _, before = model.continued_outputs([np.arange(6)], [None])
    told.clear()
    model.continued_outputs([np.arange(9), np.arange(4)], [*before, None])
    assert told == [(7, 13, [0, 3, 7], [0, 9, 13], 4, 9)] * 2  # layers


def test_of_one_sequence_no_more_memory_is_held_than_its_own():
    those = Continuation([np.arange(3), np.arange(50)], [None, None])
    those.extended(0, *torch.randn(2, 53, 2, 8))
    assert [prefix.size for prefix in those.after] == [2 * 4 * 2 * 8 * count for count in (3, 50)]
    assert {key.untyped_storage().nbytes() for key, _ in those.after[0].layers.values()} == {4 * 2 * 8 * 3}


def read(count):
    return Prefix(np.arange(count), {0: (torch.zeros(count, 1, 8), torch.zeros(count, 1, 8))})


def test_what_was_used_last_stays_within_the_budget():
    kept = Prefixes(10 * 64)
    for name in "abc":
        kept.put(name, read(3))
    assert all(kept.get(name) for name in "abc")
    kept.put("a", read(4))  # in the place of three tokens
    assert all(kept.get(name) for name in "abc")
    kept.put("d", read(1))
    assert [name for name in "abcd" if kept.get(name)] == ["a", "c", "d"]
    kept.put("e", read(11))
    assert not any(kept.get(name) for name in "abcde")
    kept.put("f", read(10))
    assert kept.get("f") is not None
