"""Digests of weight updates: what an engine loaded, base included, is what was published, or the digests differ."""

from dataclasses import replace

import numpy as np
import pytest

from engines.weights import HeldWeights, WeightUpdate, joined_digest, new_hasher, read_bucket


def bucket(**values):
    return {name: (np.array([value], np.float32).view(np.uint8), "float32", (1,)) for name, value in values.items()}


def digest_of(buckets):
    hasher = new_hasher()
    for each in buckets:
        for _ in read_bucket(each, hasher):
            pass
    return hasher.hexdigest()


def update_of(version, base=None, **values):
    buckets = [bucket(**values)]
    return WeightUpdate(version, joined_digest(base and base.digest, digest_of(buckets)), buckets, base)


class Engine:
    """Keeps tensors by name, as an engine does, and the versions it was told."""

    def __init__(self):
        self.tensors, self.loads, self.broken = {}, [], False

    def load(self, update):
        if self.broken:
            raise RuntimeError("out of memory")
        self.loads.append((update.version, sum(len(each) for each in update.buckets)))
        for each in update.buckets:
            self.tensors |= {name: float(tensor) for name, tensor in read_bucket(each, new_hasher())}
        return digest_of(update.buckets)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def held(engine):
    return HeldWeights(engine.load)


BASE = update_of(0, embed=1.0, norm=2.0)


def test_a_base_travels_once_and_is_in_every_digest(engine, held):
    for version, value in ((1, 3.0), (2, 4.0)):
        update = update_of(version, BASE, query=value)
        assert held.take(update, version - 1) == update.digest
        assert engine.tensors == {"embed": 1.0, "norm": 2.0, "query": value}
    assert engine.loads == [(0, 2), (1, 1), (2, 1)]  # no token was sampled from version 1 while the base was loaded
    assert update.digest != update_of(2, query=4.0).digest


def test_another_base_or_other_bytes_have_another_digest(engine, held):
    update = update_of(1, BASE, query=3.0)
    other = update_of(0, embed=1.0, norm=2.5)
    assert held.take(replace(update, base=replace(other, digest=BASE.digest)), 0) != update.digest
    assert held.take(update, 0) == update.digest  # the wrong base was not taken for the right one
    damaged = replace(update, buckets=[bucket(query=3.5)])
    assert held.take(damaged, 1) != update.digest


def test_whole_updates_and_failures_make_the_engine_forget_its_base(engine, held):
    update = update_of(1, BASE, query=3.0)
    held.take(update, 0)
    whole = update_of(2, embed=9.0, norm=9.0, query=9.0)
    assert held.take(whole, 1) == whole.digest == digest_of(whole.buckets)
    assert held.take(update, 2) == update.digest
    assert engine.tensors == {"embed": 1.0, "norm": 2.0, "query": 3.0}
    engine.broken = True
    with pytest.raises(RuntimeError):
        held.take(update, 1)
    engine.broken = False
    engine.loads.clear()
    assert held.take(update, 1) == update.digest
    assert engine.loads == [(1, 2), (1, 1)]
