"""A small model whose folder ships its own code: config, decoder and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_llama"

    def __init__(self, mlp_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.mlp_scale = mlp_scale
"""

MODELING = '''
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_own import OwnConfig


class OwnMLP(LlamaMLP):
    """Unlike a Llama's, it scales its output."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = config.mlp_scale

    def forward(self, x):
        return self.scale * super().forward(x)


class OwnModel(LlamaModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = OwnMLP(config)
        self.post_init()


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()
'''

TOKENIZATION = '''
from transformers import PreTrainedTokenizerFast


class OwnTokenizerFast(PreTrainedTokenizerFast):
    """Tells by `own` that it is not the class it derives from."""

    own = True
'''

FILES = {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODELING, "tokenization_own.py": TOKENIZATION}


def write_own_code_model(folder: Path, llama: Path, mlp_scale: float = 2.0) -> Path:
    """Make `folder` from the folder of a Llama with a fast tokenizer: the same weights, computed by code of its own.

    Nothing of it loads without that code, and with `mlp_scale` other than 1 it gives other numbers than the Llama.
    """
    shutil.copytree(llama, folder)
    for name, text in FILES.items():
        (folder / name).write_text(text.lstrip())
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    _update(
        folder / "config.json",
        model_type="own_llama",
        architectures=["OwnForCausalLM"],
        auto_map={**classes, "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
        mlp_scale=mlp_scale,
    )
    _update(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizerFast",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizerFast"]},
    )
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


def _update(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2))
