"""The DeepSpeed engine on real ranks: its state from any stage and rank count to any other, and sums of gradients."""

import os

import pytest
import ray
import torch
from safetensors.torch import load_file
from torch import nn

from actors.group import SpmdActor, get
from castor.config.training import Engine, Optimizer
from castor.io.files import read_json
from castor.models.head import Float32Linear
from tests.plans import spmd_group

STAGES, RANKS, STEPS = range(4), (1, 2), 10
SMALL, COUNT = 2.0**-9, 128  # beside 1.0 each of them is lost in bfloat16; together they are 0.25


class Toy(nn.Module):
    """Sizes that two ranks do not divide, a head, and a buffer that counts forward passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.head = nn.Linear(7, 9), Float32Linear(9, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(torch.tanh(self.first(x.to(self.first.weight.dtype)))).squeeze(-1)


class Scale(nn.Module):
    """One number, whose gradient is the input."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (self.number * x.to(self.number.dtype)).sum().float()


@ray.remote
class Rank(SpmdActor):
    """A rank with one engine at a time."""

    def make(self, stage, dtype, model=Toy):
        from engines.deepspeed_engine import TrainEngine

        optimizer = Optimizer(lr=0.05, lr_warmup_ratio=0.2, weight_decay=0.1)
        self.engine = TrainEngine(model(), Engine(zero_stage=stage, dtype=dtype, optimizer=optimizer), STEPS)

    def train(self, first, last):
        """Loss of the last micro-batch, norm, and next learning rate of every step."""
        rows = []
        for step in range(first, last):
            generator = torch.Generator().manual_seed(10 * step + self.rank)
            for _ in range(3):
                x = torch.randn(6, 7, generator=generator)
                loss = ((self.engine.forward(x) - x.sum(1)) ** 2).sum() / 36
                self.engine.accumulate(loss)
            rows.append((float(loss.detach()), self.engine.step(), self.engine.learning_rate))
        return rows

    def save(self, folder):
        folder.mkdir(exist_ok=True, parents=True)
        self.engine.save(folder)

    def load(self, folder):
        self.engine.load(folder)

    def weights(self):
        return dict(self.engine.named_tensors())

    def determinism(self):
        """What this process was told, and what torch does."""
        told = {name: os.environ.get(name) for name in ("VLLM_BATCH_INVARIANT", "CUBLAS_WORKSPACE_CONFIG")}
        return {**told, "algorithms": torch.are_deterministic_algorithms_enabled()}

    def norm_of(self, gradients):
        """The norm of the sum of the given gradients, all ranks' together."""
        for gradient in gradients:
            self.engine.accumulate(self.engine.forward(torch.tensor([gradient])))
        return self.engine.step()


@pytest.fixture(scope="module")
def groups(ray_session):
    """A group of one rank and one of two."""
    started = {ranks: spmd_group("rank", Rank, ranks) for ranks in RANKS}
    for group in started.values():
        group.join(120)
    yield started
    for group in started.values():
        group.stop()


def call(group, method, *args):
    return get(group.call(method, *args), 300, method)


def state(folder):
    """All that is saved, whoever wrote it."""
    tensors = {key: value for path in folder.glob("rank-*.safetensors") for key, value in load_file(path).items()}
    return {**tensors, **load_file(folder / "buffers.safetensors")}, read_json(folder / "engine.json")


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    for name, tensor in ours[0].items():
        assert torch.equal(tensor, theirs[0][name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_saved_state_is_the_same_at_every_stage_and_rank_count(groups, tmp_path, ranks, stage, dtype):
    source = groups[ranks]
    call(source, "make", stage, dtype)
    call(source, "train", 0, 3)
    call(source, "save", tmp_path / "saved")
    expected = call(source, "train", 3, 5)
    weights = call(source, "weights")
    saved = state(tmp_path / "saved")
    assert len(saved[0]) == 4 * 3 + 1  # weight and two moments of each parameter, and the buffer
    for other, group in groups.items():
        for target in STAGES:
            folder = tmp_path / f"{target}-{other}"
            call(group, "make", target, dtype)
            call(group, "load", tmp_path / "saved")
            call(group, "save", folder)
            assert_same(state(folder), saved)
            for name, tensor in call(group, "weights")[0].items():
                assert torch.equal(tensor, saved[0][f"{name}/weight"].to(tensor.dtype)), name
            if (target, other) != (stage, ranks):
                continue
            assert call(group, "train", 3, 5) == expected
            for ours, theirs in zip(call(group, "weights"), weights, strict=True):
                assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", RANKS)
def test_small_gradients_are_summed_in_float32(groups, ranks, stage, dtype):
    """DeepSpeed refuses it at stage 0, whose sum in bfloat16 shows what is lost."""
    call(groups[ranks], "make", stage, dtype, Scale)
    norms = call(groups[ranks], "norm_of", [1.0] + [SMALL] * COUNT)
    lost = stage == 0 and dtype == "bfloat16"
    assert norms == [ranks * (1.0 if lost else 1.0 + SMALL * COUNT)] * ranks
