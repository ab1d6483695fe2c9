"""What vLLM has to know of a model's class before it builds an engine."""

from __future__ import annotations

from pathlib import Path

from castor.io.files import read_json


def import_model_class(folder: str) -> None:
    """Let vLLM look at the class of the model in a folder here, where there is no GPU.

    By itself it has another Python import vLLM and look, lest this process initialises CUDA: ten seconds, whenever its
    cache does not know the class. A class that vLLM does not have is left to it.
    """
    import torch
    from vllm import ModelRegistry

    if torch.cuda.is_available():
        return
    path = Path(folder) / "config.json"
    architectures = read_json(path).get("architectures") if path.is_file() else None
    for name in architectures or ():
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
