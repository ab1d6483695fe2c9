"""The DeepSpeed engine alone, in this process: its state on disk, its guard against poisoned gradients, offload."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from castor.config.training import Engine, LoRA, Optimizer
from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.models.device import resolve_dtype
from castor.models.head import Float32Linear
from castor.models.load import load_score_model
from castor.models.lora import add_adapters
from castor.models.policy import PolicyModel
from castor.packing import pack_rows
from tests.numerics import tolerance

pytestmark = pytest.mark.usefixtures("process_group")
STEPS = 10
ROUNDING = tolerance(1.0, 1_000)  # relative, over six steps of some hundred summands
BFLOAT16_STEP = 2.0**-8  # relative


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


def make_toy(dtype):
    return Toy().to(resolve_dtype(dtype))


def make(zero_stage, dtype="float32", **options):
    from engines.deepspeed_engine import TrainEngine

    optimizer = Optimizer(lr=0.05, lr_scheduler_type="cosine", lr_warmup_ratio=0.2, weight_decay=0.1)
    config = Engine(zero_stage=zero_stage, dtype=dtype, optimizer=optimizer, **options)
    return TrainEngine(make_toy(dtype), config, STEPS)


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
    state = engine.snapshot()
    expected = train(engine, 3, 6)
    state.write(tmp_path)  # what was copied before it trained on
    again = make(stage, dtype)
    again.load(tmp_path)
    assert train(again, 3, 6) == expected
    engine.load(tmp_path)  # and back, in place
    assert train(engine, 3, 6) == expected
    for (name, ours), (_, theirs) in zip(engine.named_tensors(), again.named_tensors(), strict=True):
        assert torch.equal(ours, theirs), name
    assert again.engine.module.calls == engine.engine.module.calls == 12


@pytest.mark.parametrize("stage", [0, 3])
def test_the_state_of_another_model_is_refused_by_name(tmp_path, stage):
    engine = make(stage)
    engine.save(tmp_path)
    path = tmp_path / "rank-0-0.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors)).removesuffix("/weight")
    for changed, words in [({}, "missing there"), ({f"{name}/weight": torch.ones(3, 1)}, "3x1 there")]:
        rest = {key: tensor for key, tensor in tensors.items() if key != f"{name}/weight"}
        save_file(rest | changed, path)
        with pytest.raises(CastorError, match=f"is of another model: {name} is {words}"):
            engine.load(tmp_path)
    save_file(tensors | {"deeper/weight": torch.ones(2)}, path)
    with pytest.raises(CastorError, match="deeper is 2 there and missing in the model"):
        engine.load(tmp_path)


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
def test_a_fresh_engine_has_taken_no_step(tmp_path, stage, dtype):
    make(stage, dtype).save(tmp_path)
    assert read_json(tmp_path / "engine.json")["optimizer_steps"] == 0
    saved, start = load_file(tmp_path / "rank-0-0.safetensors"), make_toy(dtype)
    assert saved.keys() == {f"{name}/weight" for name, _ in start.named_parameters()}
    assert all(torch.equal(saved[f"{name}/weight"], tensor.float()) for name, tensor in start.named_parameters())


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


OFFLOADED = [(1, ("cpu", "none")), (2, ("cpu", "none")), (3, ("cpu", "none")), (3, ("cpu", "cpu"))]


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", ROUNDING), ("bfloat16", BFLOAT16_STEP)])
@pytest.mark.parametrize(("stage", "offload"), OFFLOADED)
def test_offload_computes_the_same(tmp_path, stage, offload, dtype, rounding):
    options = {"offload": {"optimizer": offload[0], "parameters": offload[1]}}
    engine = make(stage, dtype, **options)
    plain = [value for row in train(make(stage, dtype), 0, 3) for value in row]
    assert [value for row in train(engine, 0, 3) for value in row] == pytest.approx(plain, rel=rounding)
    engine.save(tmp_path)
    again = make(stage, dtype, **options)
    again.load(tmp_path)
    assert train(again, 3, 5) == train(engine, 3, 5)


class Scored(nn.Module):
    """A backbone in bfloat16 and a float32 head of weights that differ by far less than a bfloat16 step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.backbone, self.head = nn.Linear(8, 8, dtype=torch.bfloat16), Float32Linear(8, 1)
        with torch.no_grad():
            self.head.weight.copy_(4 + torch.arange(8) * 2.0**-12)
            self.head.bias.fill_(0.0)

    def forward(self, x, hidden=None):
        computed = torch.tanh(self.backbone(x))
        return self.head(computed if hidden is None else hidden).squeeze(-1)


@pytest.mark.parametrize(("stage", "offload"), [(stage, ("none", "none")) for stage in range(4)] + OFFLOADED)
def test_a_head_stays_float32_in_a_bfloat16_engine(tmp_path, stage, offload):
    from engines.deepspeed_engine import TrainEngine

    def make():
        optimizer = Optimizer(lr=1e-5, lr_scheduler_type="constant", lr_warmup_ratio=0)
        offloaded = {"optimizer": offload[0], "parameters": offload[1]}
        config = Engine(zero_stage=stage, dtype="bfloat16", optimizer=optimizer, offload=offloaded)
        return TrainEngine(Scored(), config, STEPS)

    def used(engine):
        """The weights of the head, read from its outputs."""
        return engine.infer(torch.zeros(8, 8, dtype=torch.bfloat16), torch.eye(8))

    def update(engine, step):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).bfloat16()
        engine.accumulate(((engine.forward(x) - 1.0) ** 2).mean())
        engine.step()

    engine = make()
    start = used(engine)
    assert torch.equal(start, 4 + torch.arange(8) * 2.0**-12)
    assert len(start.bfloat16().unique()) == 1
    for step in range(3):
        update(engine, step)
    weights = dict(engine.named_tensors())
    moved = used(engine) - weights["head.bias"]
    assert 1e-6 < (moved - start).abs().max() < 1e-4  # less than a bfloat16 step, and more than nothing
    assert not (moved == moved.bfloat16()).any()
    assert weights["head.weight"].dtype == torch.float32
    assert torch.equal(used(engine), torch.nn.functional.linear(torch.eye(8), *head_of(weights)).squeeze(-1))
    assert weights["backbone.weight"].dtype == torch.bfloat16
    engine.save(tmp_path)
    again = make()
    again.load(tmp_path)
    assert torch.equal(used(again), used(engine))
    update(engine, 3)
    update(again, 3)
    assert torch.equal(used(again), used(engine))


def head_of(weights):
    return weights["head.weight"], weights["head.bias"]


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


@pytest.mark.parametrize(("stage", "dtype"), MODES)
def test_the_last_layers_alone_are_moved_and_kept(tmp_path, tiny_models, stage, dtype):
    from engines.deepspeed_engine import TrainEngine

    tokens, lengths = np.arange(5, 65), np.array([20, 40])
    rows, positions = pack_rows(tokens, lengths, 64), torch.arange(1, 60)
    optimizer = Optimizer(lr=0.01, lr_warmup_ratio=0)
    config = Engine(zero_stage=stage, dtype=dtype, trained_layers=1, optimizer=optimizer)

    def made():
        return TrainEngine(load_score_model(tiny_models.cost, resolve_dtype(dtype)).as_critic(), config, STEPS)

    def step(engine):
        engine.accumulate((engine.forward(rows, positions) - 1).square().mean())
        engine.step()

    engine = made()
    before = dict(engine.named_tensors())
    step(engine)
    after = dict(engine.named_tensors())
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"backbone", "score_head"}
    assert all(name.startswith(("backbone.layers.1.", "backbone.norm.", "score_head.")) for name in moved)
    engine.snapshot().write(tmp_path)
    (file,) = tmp_path.glob("rank-*.safetensors")
    kept = {key.rpartition("/")[0] for key in load_file(file)}
    assert kept >= moved
    assert all(name.startswith(("backbone.layers.1.", "backbone.norm.", "score_head.")) for name in kept)
    again = made()
    again.load(tmp_path)
    for each in (engine, again):
        step(each)
    assert all(torch.equal(tensor, dict(again.named_tensors())[name]) for name, tensor in engine.named_tensors())
