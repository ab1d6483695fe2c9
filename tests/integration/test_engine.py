"""The DeepSpeed engine alone, in this process: its state on disk, its guard against poisoned gradients, offload."""

import numpy as np
import pytest
import torch
from torch import nn

from castor.config.training import Engine, LoRA, Optimizer
from castor.models.lora import add_adapters
from castor.models.policy import PolicyModel
from castor.packing import pack_rows
from tests.numerics import tolerance

pytestmark = pytest.mark.usefixtures("process_group")
STEPS = 10
ROUNDING = tolerance(1.0, 1_000)  # relative, over six steps of some hundred summands


class Toy(nn.Module):
    """Two layers and a buffer that counts forward passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(7, 9), nn.Linear(9, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.second(torch.tanh(self.first(x))).squeeze(-1).float()


def make(zero_stage, dtype="float32", **options):
    from castor.models.device import resolve_dtype
    from engines.deepspeed_engine import TrainEngine

    optimizer = Optimizer(lr=0.05, lr_scheduler_type="cosine", lr_warmup_ratio=0.2, weight_decay=0.1)
    config = Engine(zero_stage=zero_stage, dtype=dtype, optimizer=optimizer, **options)
    return TrainEngine(Toy().to(resolve_dtype(dtype)), config, STEPS)


def train(engine, first, last):
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        dtype = next(engine.engine.module.parameters()).dtype
        for _ in range(2):
            x = torch.randn(6, 7, generator=generator)
            loss = ((engine.forward(x.to(dtype)) - x.sum(1)) ** 2).sum() / 12
            engine.accumulate(loss)
        losses.append((float(loss.detach()), engine.step(), engine.learning_rate))
    return losses


MODES = [(stage, dtype) for stage in range(4) for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(("stage", "dtype"), MODES)
def test_a_saved_engine_goes_on_bit_for_bit(tmp_path, stage, dtype):
    engine = make(stage, dtype)
    train(engine, 0, 3)
    engine.save(tmp_path)
    expected = train(engine, 3, 6)
    again = make(stage, dtype)
    again.load(tmp_path)
    assert train(again, 3, 6) == expected
    for (name, ours), (_, theirs) in zip(engine.named_tensors(), again.named_tensors(), strict=True):
        assert torch.equal(ours, theirs), name
    assert again.engine.module.calls == engine.engine.module.calls == 12


@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("source", [0, 2, 3])
def test_the_state_fits_every_stage(tmp_path, source, target):
    engine = make(source)
    train(engine, 0, 3)
    engine.save(tmp_path)
    other = make(target)
    other.load(tmp_path)
    flat = [value for row in train(other, 3, 6) for value in row]
    assert flat == pytest.approx([value for row in train(engine, 3, 6) for value in row], rel=ROUNDING)


@pytest.mark.parametrize(("stage", "dtype"), MODES)
def test_a_poisoned_gradient_changes_nothing(stage, dtype):
    engine, clean = make(stage, dtype), make(stage, dtype)
    train(engine, 0, 2)
    before = dict(engine.named_tensors())
    engine.accumulate(engine.forward(torch.full((2, 7), float("nan"), dtype=before["first.weight"].dtype)).sum())
    with pytest.raises(FloatingPointError, match="was left out"):
        engine.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.named_tensors())
    train(clean, 0, 2)
    assert [row[:2] for row in train(engine, 2, 3)] == [row[:2] for row in train(clean, 2, 3)]


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, ("cpu", "none")), (2, ("cpu", "none")), (3, ("cpu", "none")), (3, ("cpu", "cpu"))]
)
def test_offload_computes_the_same(tmp_path, stage, offload):
    options = {"offload": {"optimizer": offload[0], "parameters": offload[1]}}
    engine = make(stage, **options)
    plain = [value for row in train(make(stage), 0, 3) for value in row]
    assert [value for row in train(engine, 0, 3) for value in row] == pytest.approx(plain, rel=ROUNDING)
    engine.save(tmp_path)
    again = make(stage, **options)
    again.load(tmp_path)
    assert train(again, 3, 5) == train(engine, 3, 5)


def test_offload_needs_a_stage_that_shards():
    with pytest.raises(ValueError, match="parameters needs zero_stage 3"):
        Engine(zero_stage=2, offload={"parameters": "cpu"})


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4.0, target_modules=["q_proj", "v_proj"])])
def test_checkpointing_recomputes_each_layer_and_gives_the_same_gradients(tiny_models, lora, zero_stage):
    from engines.deepspeed_engine import TrainEngine

    tokens, lengths = np.arange(5, 65), np.array([20, 40])
    rows, positions = pack_rows(tokens, lengths, 64), torch.arange(1, 60)
    passes, moved = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = PolicyModel.load(tiny_models.policy, torch.float32)
        if lora:
            add_adapters(policy, lora)
        config = Engine(zero_stage=zero_stage, gradient_checkpointing=checkpointing, optimizer=Optimizer(lr=0.01))
        engine = TrainEngine(policy, config, STEPS)
        calls = []
        policy.lm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        for _ in range(2):
            engine.accumulate(-engine.forward(rows, positions).mean())
            engine.step()
        passes.append(len(calls))
        moved.append(torch.cat([tensor.flatten().clone() for _, tensor in engine.named_tensors()]))
    assert passes == [2, 4]
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-7)
