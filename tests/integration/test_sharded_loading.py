"""Under ZeRO-3 two ranks load a model that neither of them ever holds: the same weights, the same heads and probes."""

import json
import shutil
import weakref

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from actors.group import SpmdActor, get
from castor.config.training import Engine, LoRA
from castor.data.tokens.template import load_tokenizer
from castor.io.errors import CastorError
from castor.models.load import load_critic, load_score_model
from castor.models.lora import add_adapters, inner_model
from castor.models.moderation import ModerationInfo
from castor.models.pku import save_pku
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.start import start_moderation_model, start_score_model
from castor.packing import pack_rows
from tests.plans import spmd_group

SIZE = {
    "hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 160, "initializer_range": 0.3,
}  # fmt: skip
LANGUAGE_MODELS = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 4, "n_inner": 240, "n_head": 4, "n_positions": 160}),
    "opt": ("opt", {"ffn_dim": 240, "word_embed_proj_dim": 32, "init_std": 0.3}),  # its sequences are not kept apart
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),  # its logits are capped
}
ENCODER = "bert"  # the oldest checkpoints call the weights of its norms otherwise
LOADS = {
    "policy": lambda folder, dtype: PolicyModel.load(folder, dtype),
    "score": lambda folder, dtype: load_score_model(folder, dtype),
    "critic": lambda folder, dtype: load_critic(folder, dtype),
    "fresh": lambda folder, dtype: start_score_model(folder, "reward", dtype, head_bias=True),
    "moderation": lambda folder, dtype: start_moderation_model(
        folder, ModerationInfo.fresh("pku", "pair", severity=True), dtype
    ),
}


class Held(TorchDispatchMode):
    """The most numbers that all parameters made meanwhile have held on this rank at a time, whole or in shards."""

    def __enter__(self):
        self.parameters, self.most = weakref.WeakValueDictionary(), 0
        self.hook = register_module_parameter_registration_hook(self.note)
        return super().__enter__()

    def __exit__(self, *exception):
        self.hook.remove()
        return super().__exit__(*exception)

    def note(self, module, name, parameter):
        if parameter is not None:
            self.parameters[id(parameter)] = parameter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parameters = list(self.parameters.values())
        shards = [getattr(parameter, "ds_tensor", None) for parameter in parameters]
        held = [*parameters, *(shard for shard in shards if shard is not None)]
        self.most = max(self.most, sum(part.numel() for part in held if part.device.type != "meta"))
        return result


@ray.remote
class Loader(SpmdActor):
    """One rank."""

    def load(self, folder, kind, zero_stage, dtype="float32", lora=None):
        """Numbers held at most; what was found and made; outputs; weights in full, and buffers."""
        from castor.models.device import resolve_dtype
        from engines.deepspeed_engine import TrainEngine, loading

        config = Engine(zero_stage=zero_stage, dtype=dtype)
        torch.manual_seed(3)
        with Held() as held, loading(config):
            model = LOADS[kind](folder, resolve_dtype(dtype))
        found = model.packing, getattr(model, "divisible", None)
        if lora is not None:
            add_adapters(model, lora)
        engine = TrainEngine(model, config, 10)
        weights = dict(engine.named_tensors())
        buffers = {name: buffer.clone() for name, buffer in engine.engine.module.named_buffers()}
        rows = pack_rows(np.arange(5, 29), np.array([9, 15]), 16)
        outputs = engine.infer(rows, torch.tensor([4, 8, 12, 23]))
        groups = [group["weight_decay"] for group in engine.engine.basic_optimizer.param_groups]
        _, inner = inner_model(model)
        saved = revert_weight_conversion(inner, {name: torch.zeros(1) for name in inner.state_dict()}).keys()
        return held.most, (*found, groups, saved), outputs, weights, buffers

    def numbers_on_this_rank(self, folder):
        """Of a model that is loaded without regard to any engine."""
        return sum(parameter.numel() for parameter in PolicyModel.load(folder, torch.float32).parameters())


@pytest.fixture(scope="module")
def loaders(ray_session):
    group = spmd_group("loader", Loader, 2)
    group.join(120)
    yield group
    group.stop()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_models):
    """Language models by architecture; a cost model in Castor's layout and in PKU's."""
    root, tokenizer = tmp_path_factory.mktemp("sharded"), load_tokenizer(tiny_models.policy)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "vocab_size": len(tokenizer)}
    for name, (kind, own) in (LANGUAGE_MODELS | {ENCODER: ("bert", {})}).items():
        torch.manual_seed(0)
        auto = AutoModel if name == ENCODER else AutoModelForCausalLM
        lm = auto.from_config(CONFIG_MAPPING[kind](**(SIZE | special | own)))
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        lm.save_pretrained(root / name, max_shard_size="50KB" if name == "llama" else "50GB")
        tokenizer.save_pretrained(root / name)
    cost = ScoreModel.from_backbone(str(root / "llama"), ScoreInfo("cost", std=1.7), torch.float32)
    weights = {name: parameter.detach() for name, parameter in cost.named_parameters()}
    save_score_model(root / "cost", cost.backbone, weights, cost.info, str(root / "llama"))
    save_pku(cost, root / "pku", str(root / "llama"))
    return root


def load(group, *args, **kwargs):
    return get(group.call("load", *args, **kwargs), 300, "load")


def check_same(whole, shards):
    for (_, found, outputs, weights, buffers), (_, probed, computed, same, kept) in zip(whole, shards, strict=True):
        assert probed == found
        for ours, theirs in ((same, weights), (kept, buffers)):
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype, name
                assert torch.equal(ours[name], tensor), name
        assert torch.equal(computed, outputs)


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [*((name, "policy", "float32") for name in LANGUAGE_MODELS), ("llama", "policy", "bfloat16"),
     ("cost", "score", "bfloat16"), ("pku", "score", "float32"), ("cost", "critic", "float32"),
     ("llama", "fresh", "float32"), ("tied", "moderation", "bfloat16"), (ENCODER, "fresh", "float32")],
)  # fmt: skip
def test_shards_are_the_model_and_no_rank_held_it(loaders, folders, name, kind, dtype):
    whole = load(loaders, str(folders / name), kind, 2, dtype)
    shards = load(loaders, str(folders / name), kind, 3, dtype)
    check_same(whole, shards)
    sizes = [tensor.numel() for tensor in whole[0][3].values()]
    half = (sum(sizes) + max(sizes)) / 2  # a head that is tied to the embedding is a tensor of its own while it loads
    assert all(rank[0] >= 0.999 * sum(sizes) for rank in whole)
    assert all(rank[0] <= half + 1.01 * max(sizes) < sum(sizes) for rank in shards)  # one is whole at a time


@pytest.mark.parametrize("targets", [None, ["c_attn"]])
def test_adapters_on_shards(loaders, folders, targets):
    lora = LoRA(rank=2, target_modules=targets)
    name = "gpt2" if targets else "llama"  # GPT-2's layers keep their weights transposed
    whole = load(loaders, str(folders / name), "policy", 2, lora=lora)
    shards = load(loaders, str(folders / name), "policy", 3, lora=lora)
    check_same(whole, shards)
    assert any(".lora_A." in key for key in shards[0][3])


def test_a_load_outside_is_whole_again(loaders, folders):
    load(loaders, str(folders / "llama"), "policy", 3)
    files = (folders / "llama").glob("*.safetensors")
    total = sum(tensor.numel() for file in files for tensor in load_file(file).values())
    assert get(loaders.call("numbers_on_this_rank", str(folders / "llama")), 120, "load") == [total, total]


def test_weights_that_do_not_fit_are_refused_on_shards(loaders, folders, tmp_path):
    """Rank 0 reads them and says so; the other rank waits for it, and is stopped with its group: the last test here."""
    other = shutil.copytree(folders / "tied", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 56}))
    with pytest.raises(CastorError, match=r"other.*as a causal language model"):
        get(loaders.call("load", str(other), "policy", 3)[0], 120, "load")
