"""Buckets, and their way over gloo or ipc from a sender to receivers that come, stay away, or leave."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from castor.io.errors import CastorError
from engines.weights import gloo, ipc
from engines.weights.base import TransferError
from engines.weights.buckets import Packer, unpack
from engines.weights.collective import Invitation, dissolve
from engines.weights.digest import Digest

CPU = torch.device("cpu")
TENSORS = {
    "embed": torch.randn(50, 7),
    "norm": torch.randn(13).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "scale": torch.tensor(3.5),
    "transposed": torch.randn(6, 5).T,
    "ids": torch.arange(9, dtype=torch.int8),
}


def same(received, sent):
    assert list(received) == list(sent)
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1500, 1 << 20])
def test_tensors_come_out_of_buckets_as_they_went_in(bucket_bytes):
    packer = Packer(CPU, bucket_bytes)
    for scale in (1, 2):  # the buffers are used again
        sent = {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in TENSORS.items()}
        received = {}
        for entries, flat in packer.pack(sent.items()):
            assert len(flat) <= max(bucket_bytes + 16, 50 * 7 * 4 + 16)
            received |= {name: tensor.clone() for name, tensor in unpack(entries, flat)}
        same(received, sent)


def test_a_bucket_keeps_its_bytes_while_the_next_one_is_filled():
    tensor = torch.zeros(4)  # as a learner's, it holds its values until the next one is asked for

    def tensors():
        for number in range(6):
            tensor.fill_(number)
            yield str(number), tensor

    before = None
    for entries, flat in Packer(CPU, 16).pack(tensors()):
        (name, found), *_ = unpack(entries, flat)
        assert found.tolist() == [float(name)] * 4
        if before is not None:
            name, found = before
            assert found.tolist() == [float(name)] * 4
        before = next(unpack(entries, flat))


@pytest.fixture(params=[gloo, ipc], ids=["gloo", "ipc"])
def transport(request):
    return request.param


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def load_of(piece, receiver, fail_at=None, seconds=0.0):
    """What a receiver gets, its digest, and in how many buckets; each takes it so many seconds."""
    received, digest, buckets = {}, Digest(), []

    def load(tensors):
        if len(buckets) == fail_at:
            raise ValueError("not for me")
        buckets.append(time.sleep(seconds))
        received.update((name, tensor) for name, tensor in digest.adding(tensors))

    receiver.receive(piece, load)
    return received, digest.over(None), len(buckets)


def start(sender, receivers, timeout_s=20.0, come=None):
    invitation = sender.invite("127.0.0.1", come or len(receivers), timeout_s)
    sender.accept(invitation)
    return vars(invitation)


def test_all_receivers_get_stream_after_stream(pool, transport):
    sender, receivers = transport.Sender(keep=True, bucket_bytes=256), [transport.Receiver() for _ in range(3)]
    piece = start(sender, receivers)
    for version, count in ((1, len(TENSORS)), (2, 2), (3, 0)):
        sent = dict(list(TENSORS.items())[:count])
        loads = [pool.submit(load_of, piece, receiver) for receiver in receivers]
        update = sender.send(sent.items(), version)
        for load in loads:
            received, digest, buckets = load.result(30)
            same(received, sent)
            assert digest == update.digest
            assert buckets >= min(count, 2)
        assert (update.version, update.pieces, update.lost) == (version, [piece], None)
    keys = sender.store.num_keys()
    update = pool.submit(sender.send, TENSORS.items(), 4)
    for load in [pool.submit(load_of, piece, receiver) for receiver in receivers]:
        load.result(30)
    assert update.result(30).lost is None
    assert sender.store.num_keys() == keys  # nothing is left behind in the store


def test_no_bucket_is_filled_again_before_a_slow_receiver_has_it(pool, transport):
    size = 8 << 20  # more than the connection holds
    tensor = torch.zeros(size, dtype=torch.uint8)
    sender, receivers = transport.Sender(keep=True, bucket_bytes=size), [transport.Receiver(), transport.Receiver()]
    piece = start(sender, receivers)
    loads = [pool.submit(load_of, piece, receivers[0], seconds=0.2), pool.submit(load_of, piece, receivers[1])]
    update = sender.send(((str(number), tensor.fill_(number)) for number in range(8)), 1)
    assert {load.result(60)[1] for load in loads} == {update.digest}


def test_other_ranks_gather_and_send_nothing():
    gathered = []
    tensors = ((name, gathered.append(name) or tensor) for name, tensor in TENSORS.items())
    sender = gloo.Sender(keep=False)
    assert sender.send(tensors, 1) is None
    assert gathered == list(TENSORS)


def test_one_who_stays_away_keeps_nobody_waiting_and_the_next_group_is_whole(pool, transport):
    sender, receivers = transport.Sender(keep=True, bucket_bytes=256), [transport.Receiver() for _ in range(2)]
    piece = start(sender, receivers, timeout_s=3.0, come=3)
    loads = [pool.submit(load_of, piece, receiver) for receiver in receivers]
    begin = time.monotonic()
    update = sender.send(TENSORS.items(), 1)
    assert "did not get through" in update.lost
    for load in loads:
        with pytest.raises(TransferError):
            load.result(30)
    assert time.monotonic() - begin < 20
    again = start(sender, receivers)
    loads = [pool.submit(load_of, again, receiver) for receiver in receivers]
    whole = sender.send(TENSORS.items(), 1)
    assert (whole.lost, whole.digest) == (None, update.digest)  # the digest was right although nobody got the weights
    assert [load.result(30)[1] for load in loads] == [whole.digest] * 2


def test_one_who_fails_in_mid_transfer_ends_it_for_the_sender_but_not_its_gathering(pool, transport):
    sender, receivers = transport.Sender(keep=True, bucket_bytes=256), [transport.Receiver() for _ in range(2)]
    piece = start(sender, receivers, timeout_s=3.0)
    failing = pool.submit(load_of, piece, receivers[0], fail_at=1)
    other = pool.submit(load_of, piece, receivers[1])
    gathered = []
    update = sender.send(((name, gathered.append(name) or tensor) for name, tensor in TENSORS.items()), 1)
    assert update.lost
    assert gathered == list(TENSORS)
    with pytest.raises(ValueError, match="not for me"):
        failing.result(30)
    if other.exception(30) is not None:  # it may have had everything before the sender knew
        assert isinstance(other.exception(), TransferError)


def test_a_sender_that_is_told_of_a_death_does_not_wait_for_its_deadline(pool, transport):
    sender, receivers = transport.Sender(keep=True), [transport.Receiver() for _ in range(2)]
    piece = start(sender, receivers, timeout_s=3600.0)
    dead = threading.Event()  # it never says that it has the weights
    loads = [pool.submit(receivers[0].receive, piece, lambda tensors: dead.wait(60))]
    loads.append(pool.submit(load_of, piece, receivers[1]))
    sending = pool.submit(sender.send, TENSORS.items(), 1)
    loads[1].result(30)
    dissolve(Invitation(**piece), "an engine died")
    assert sending.result(30).lost == "the weights did not get through: an engine died"
    dead.set()


def test_a_group_that_its_sender_has_left_is_told_nothing(monkeypatch):
    monkeypatch.setattr("engines.weights.collective.TELL_S", 0.5)  # and not the group's hour
    sender = gloo.Sender(keep=True)
    invitation = sender.invite("127.0.0.1", 1, 3600.0)
    sender.close()
    with pytest.raises(TransferError):
        dissolve(invitation, "an engine died")


def test_members_that_cannot_open_each_others_memory_are_named(pool, monkeypatch):
    places = iter(["node a", "node b"])
    monkeypatch.setattr(ipc.Group, "_place", lambda self: next(places))
    sender, receiver = ipc.Sender(keep=True), ipc.Receiver()
    load = pool.submit(load_of, start(sender, [receiver]), receiver)
    with pytest.raises(CastorError, match="they are on node a and node b: take transfer host or nccl"):
        sender.send(TENSORS.items(), 1)
    with pytest.raises(CastorError, match="one GPU"):
        load.result(30)
