"""Digests of weight updates: what an engine loaded, base included, is what was sent, or the digests differ."""

from dataclasses import replace

import pytest
import torch

from engines.weights.base import LoadedWeights, Sender
from engines.weights.digest import Digest


class Lists(Sender):
    """A transport within this process: its pieces are tensors, in lists of two."""

    transport = "lists"

    def carry(self, tensors):
        pairs = [(name, tensor.clone()) for name, tensor in tensors]
        return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]


def update_of(version, base=None, **values):
    tensors = ((name, torch.tensor([value])) for name, value in values.items())
    return Lists(keep=True).send(tensors, version, base)


class Engine:
    """Keeps tensors by name, as an engine does, and the versions it was told."""

    def __init__(self):
        self.tensors, self.loads, self.broken = {}, [], False

    def load(self, update):
        if self.broken:
            raise RuntimeError("out of memory")
        self.loads.append((update.version, sum(map(len, update.pieces))))
        digest = Digest()
        for piece in update.pieces:
            self.tensors |= {name: float(tensor) for name, tensor in digest.adding(piece)}
        return digest.over(None)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def loaded(engine):
    return LoadedWeights(engine.load)


BASE = update_of(0, embed=1.0, norm=2.0)


def test_a_base_travels_once_and_is_in_every_digest(engine, loaded):
    for version, value in ((1, 3.0), (2, 4.0)):
        update = update_of(version, BASE, query=value)
        update.check(loaded.take(update))
        assert engine.tensors == {"embed": 1.0, "norm": 2.0, "query": value}
    assert engine.loads == [(0, 2), (1, 1), (2, 1)]  # no token was sampled from version 1 while the base was loaded
    assert update.digest != update_of(2, query=4.0).digest


def test_another_base_or_other_tensors_have_another_digest(loaded):
    update = update_of(1, BASE, query=3.0)
    other = update_of(0, embed=1.0, norm=2.5)
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        update.check(loaded.take(replace(update, base=replace(other, digest=BASE.digest))))
    update.check(loaded.take(update))  # the wrong base was not taken for the right one
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        update.check(loaded.take(replace(update, pieces=update_of(1, query=3.5).pieces)))
    with pytest.raises(RuntimeError, match="holds version 2"):
        update.check(loaded.take(replace(update, version=2)))


@pytest.mark.parametrize(
    "other",
    [
        {"b": 2.0, "a": 1.0},
        {"a": 2.0, "b": 1.0},
        {"a": 1.0},
        {"a": 1.0, "c": 2.0},
        {"a": [1.0], "b": 2.0},
        {"a": 1, "b": 2.0},
    ],
)
def test_a_digest_is_of_names_order_types_shapes_and_values(other):
    assert update_of(1, **other).digest != update_of(1, a=1.0, b=2.0).digest


def test_whole_updates_and_failures_make_the_engine_forget_its_base(engine, loaded):
    update = update_of(1, BASE, query=3.0)
    loaded.take(update)
    whole = update_of(2, embed=9.0, norm=9.0, query=9.0)
    whole.check(loaded.take(whole))
    update.check(loaded.take(update))
    assert engine.tensors == {"embed": 1.0, "norm": 2.0, "query": 3.0}
    engine.broken = True
    with pytest.raises(RuntimeError):
        loaded.take(update)
    engine.broken = False
    engine.loads.clear()
    update.check(loaded.take(update))
    assert engine.loads == [(1, 2), (1, 1)]


def test_ranks_that_do_not_keep_take_part_in_every_gathering():
    gathered = []

    def tensors():
        for name in "abc":
            gathered.append(name)
            yield name, torch.zeros(2)

    assert Lists(keep=False).send(tensors(), 1) is None
    assert gathered == ["a", "b", "c"]
