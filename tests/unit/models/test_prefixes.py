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
from tests.unit.models.test_attention import LEFT, SIZE, TAKEN, forgetful


def frozen(name="llama", wrap=lambda backbone: ScoreModel(backbone, ScoreInfo("cost")), budget=64, place=True):
    kind, own = (TAKEN | LEFT)[name]
    torch.manual_seed(0)
    model = wrap(AutoModel.from_config(CONFIG_MAPPING[kind](**(SIZE | own))))
    made = FrozenModel(name, model, torch.device("cpu"), budget)
    return made.placed() if place else made


def moderation(backbone):
    return ModerationModel(backbone, ModerationInfo.fresh("pku", "pair", severity=True))


LLAMA = frozen()


ROOM = 1 << 30  # bytes


@pytest.mark.parametrize("name", TAKEN)
def test_models_with_a_varlen_kernel_read_on(name):
    assert frozen(name).prefixes(ROOM) is not None


@pytest.mark.parametrize("name", LEFT)
def test_others_do_not(name):
    assert frozen(name).prefixes(ROOM) is None


def test_no_more_do_models_that_are_called_without_the_kernel():
    model = frozen().model
    model.packing = "masked"
    alone = FrozenModel("masked", model, torch.device("cpu"), 64)
    assert alone.prefixes(ROOM) is None
    with pytest.raises(ValueError, match="only a varlen kernel"):
        alone.continued_outputs([np.array([2, 3])], [None], Prefixes(8))


def test_a_model_that_forgets_does_not_read_on():
    model = frozen(wrap=lambda backbone: ScoreModel(backbone, ScoreInfo("cost")), place=False)
    assert use_kernel(model.model, forgetful)
    assert model.model.packing == "varlen"
    assert model.prefixes(ROOM) is None


@pytest.mark.parametrize("wrap", [moderation, lambda b: ClassifierCost(moderation(b), Classifier(reduce="max"))])
def test_moderation_models_do_too(wrap):
    model = frozen(wrap=wrap)
    read, tokens = model.prefixes(ROOM), np.arange(30) % 60
    model.continued_outputs([tokens[:20]], ["one"], read)
    found = model.continued_outputs([tokens], ["one"], read)
    np.testing.assert_allclose(found, model.unchecked_outputs([tokens]), rtol=1e-4, atol=1e-5)


TEXT = st.lists(st.integers(0, 59), min_size=1, max_size=20)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(0, 120), st.data())
def test_whatever_was_read_before_the_numbers_are_those_of_the_whole(count, room, data):
    """Texts with a name or none, each of which goes on as the last one of that name, in part, or is another."""
    read, last = Prefixes(room), {name: [] for name in range(count)}
    for _ in range(4):
        names = [name if data.draw(st.booleans()) else None for name in range(count)]
        for name in last:
            last[name] = last[name][: data.draw(st.integers(0, 30))] + data.draw(TEXT)
        texts = [np.array(last[name]) for name in range(count)]
        found = LLAMA.continued_outputs(texts, names, read)
        np.testing.assert_allclose(found, LLAMA.unchecked_outputs(texts), rtol=1e-4, atol=1e-4)
        assert sum(len(kept.tokens) for name in range(count) if (kept := read.get(name))) <= room


def test_what_was_read_is_not_computed_again():
    tokens, sizes, model, read = np.arange(30), [], frozen(), Prefixes(100)
    model.model.backbone.layers[0].mlp.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    changed = np.where(np.arange(30) < 8, tokens, 59)  # as when the last tokens of a text become others
    for text in (tokens[:20], tokens, changed, changed[:20]):  # the output of the last one is asked for
        model.continued_outputs([text], ["one"], read)
    assert sizes == [20, 10, 22, 1]


def test_a_kernel_is_told_of_more_keys_than_queries():
    told = []

    def telling(query, key, value, cuts, key_cuts, longest, longest_key, **options):
        told.append((len(query), len(key), cuts.tolist(), key_cuts.tolist(), longest, longest_key))
        return sequence_by_sequence(query, key, value, cuts, key_cuts, longest, longest_key, **options)

    score = ScoreModel(AutoModel.from_config(CONFIG_MAPPING["llama"](**SIZE)).eval(), ScoreInfo("cost"))
    assert use_kernel(score, telling)
    model = FrozenModel("told", score, torch.device("cpu"), 64)
    read = Prefixes(100)
    model.continued_outputs([np.arange(6)], ["one"], read)
    told.clear()
    model.continued_outputs([np.arange(9), np.arange(4)], ["one", None], read)
    assert told == [(7, 13, [0, 3, 7], [0, 9, 13], 4, 9)] * 2  # layers


def test_of_one_sequence_no_more_memory_is_held_than_its_own():
    those = Continuation([np.arange(3), np.arange(50)], [None, None], [True, False])
    those.extended(0, *torch.randn(2, 53, 2, 8))
    kept, other = those.after
    assert other is None
    assert {part.untyped_storage().nbytes() for part in kept.layers[0]} == {4 * 2 * 8 * 3}
    assert kept.token_bytes == 2 * 4 * 2 * 8


def test_bytes_are_room_for_tokens():
    layers, heads, size = SIZE["num_hidden_layers"], SIZE["num_key_value_heads"], 32 // SIZE["num_attention_heads"]
    assert frozen().prefixes(1000).tokens_kept == 1000 // (2 * layers * heads * size * 4)


def test_what_was_used_last_stays_within_the_room():
    kept = Prefixes(10)
    for name in "abc":
        kept.put(name, Prefix(np.arange(3)))
    assert all(kept.get(name) for name in "abc")
    kept.put("a", Prefix(np.arange(4)))  # in the place of three tokens
    assert all(kept.get(name) for name in "abc")
    kept.put("d", Prefix(np.arange(1)))
    assert [name for name in "abcd" if kept.get(name)] == ["a", "c", "d"]
    kept.put("e", Prefix(np.arange(11)))
    assert not any(kept.get(name) for name in "abcde")
    kept.put("f", Prefix(np.arange(10)))
    assert kept.get("f") is not None


def test_of_what_is_read_together_no_more_is_kept_than_there_is_room_for():
    kept = Prefixes(10)
    assert kept.fitting(["a", None, "b", "c"], [4, 100, 6, 1]) == [True, False, True, False]
