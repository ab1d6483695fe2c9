"""Linear layers through oneDNN: the same numbers and gradients, and torch's own way wherever that is not right."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from castor.config.cluster import FLOAT32_PRODUCTS
from castor.models import onednn
from castor.models.attention import place
from castor.models.onednn import OneDNNLinear, exact, use_onednn
from castor.models.policy import PolicyModel
from tests.unit.models.test_attention import LENGTHS, SIZE, packed

CPU = torch.device("cpu")
has_both = pytest.mark.skipif(not exact(), reason="this torch has no MKL or no oneDNN, or oneDNN rounds here")


class Products(TorchDispatchMode):
    """Notes of every product whether oneDNN may make it."""

    def __init__(self):
        super().__init__()
        self.through_onednn: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.through_onednn.append(setting() == "bf16")
        return function(*args, **(kwargs or {}))


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


def outcome(layer, given):
    """What a layer makes of it and the gradients of that, the input's first; all in float64."""
    given = given.clone().requires_grad_()
    made = layer(given)
    made.backward(torch.linspace(-1, 1, made.numel()).to(made).view(made.shape))
    return [made.double(), given.grad.double(), *(parameter.grad.double() for parameter in layer.parameters())]


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(96, 160, bias=bias)


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.setenv(FLOAT32_PRODUCTS, "onednn")


@has_both
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 96), (3, 40, 96), (2, 1, 96), (0, 96)])
def test_numbers_and_gradients_are_those_of_float64(chosen, shape, bias):
    layer, given = linear(bias), torch.randn(shape)
    use_onednn(whole := nn.Sequential(layer))
    assert type(layer) is OneDNNLinear
    with Products() as seen:
        found = outcome(whole, given)
    assert seen.through_onednn == [True] * 3
    torch.testing.assert_close(found, outcome(linear(bias).double(), given.double()), rtol=1e-5, atol=1e-5)
    assert setting() == "none"


@has_both
def test_what_is_frozen_gets_no_gradient(chosen):
    layer, given = linear(), torch.randn(3, 96)
    use_onednn(nn.Sequential(layer))
    layer.requires_grad_(False)
    with Products() as seen:
        layer(given.requires_grad_()).sum().backward()
    assert len(seen.through_onednn) == 2
    assert given.grad is not None
    assert layer.weight.grad is layer.bias.grad is None


@has_both
def test_other_types_and_shards_go_as_before(chosen):
    layer = linear()
    use_onednn(nn.Sequential(layer))
    with Products() as seen:
        layer.double()(torch.randn(3, 96, dtype=torch.float64))
        layer.bfloat16()(torch.randn(3, 96, dtype=torch.bfloat16))
        layer.float().weight.ds_id = 0  # ZeRO-3's mark
        layer(torch.randn(3, 96))
    assert seen.through_onednn == [False] * 3


@has_both
def test_only_products_of_layers_go_through_it_in_a_policy_on_a_cpu(chosen):
    torch.manual_seed(0)
    policy = place(PolicyModel(LlamaForCausalLM(LlamaConfig(**SIZE))), CPU)
    assert {type(part) for part in policy.modules() if isinstance(part, nn.Linear)} == {OneDNNLinear}
    rows, _ = packed()
    with Products() as seen:
        (-policy(rows, LENGTHS.cumsum(0)[:2] - 1).sum()).backward()
    layers = SIZE["num_hidden_layers"] * 7 + 1  # seven of each, and the vocabulary's
    assert sum(seen.through_onednn) == 3 * layers
    assert setting() == "none"


@pytest.mark.parametrize(
    ("asked", "maker", "rounds", "used"),
    [
        ("auto", "AuthenticAMD", False, True),
        ("auto", "GenuineIntel", False, False),
        ("auto", None, False, False),
        ("auto", "AuthenticAMD", True, False),
        ("torch", "AuthenticAMD", False, False),
        ("onednn", "GenuineIntel", False, True),
        ("onednn", "GenuineIntel", True, False),
    ],
)
def test_who_multiplies(monkeypatch, tmp_path, asked, maker, rounds, used):
    monkeypatch.setenv(FLOAT32_PRODUCTS, asked)
    monkeypatch.setattr(onednn, "exact", lambda: not rounds)
    monkeypatch.setattr(onednn, "_CPUINFO", tmp_path / "cpuinfo")
    if maker is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\nflags\t\t: fpu\n")
    onednn._foreign.cache_clear()
    layer = linear()
    try:
        use_onednn(nn.Sequential(layer))
    finally:
        onednn._foreign.cache_clear()
    assert isinstance(layer, OneDNNLinear) == used


def test_a_name_that_stands_for_nothing_is_refused(monkeypatch):
    monkeypatch.setenv(FLOAT32_PRODUCTS, "mkl")
    with pytest.raises(ValueError, match="CASTOR_FLOAT32_PRODUCTS is 'mkl': it can be auto, torch or onednn"):
        use_onednn(nn.Sequential(linear()))


@has_both
def test_rounding_is_found_out(monkeypatch):
    exact.cache_clear()
    matmul = torch.Tensor.__matmul__

    def rounded(left, right):
        return matmul(left.bfloat16(), right.bfloat16()).float() if setting() == "bf16" else matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    try:
        assert not exact()
    finally:
        exact.cache_clear()
