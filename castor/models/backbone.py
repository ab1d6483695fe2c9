"""Loading a transformers backbone, and running packed rows through any of them without sequences seeing each other."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from castor.io.errors import CastorError
from castor.packing import PackedRows

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
ISOLATION_TOLERANCE = 1e-3  # of the largest hidden value; a sequence that is seen changes another's by far more


def load_config(model: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a folder or hub id. Raises CastorError when there is none."""
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CastorError(
            f"{model!r} cannot be loaded, it is no model folder or hub id: {first_line(error)}"
        ) from error


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate of a model to zero, in place.

    A policy's log-probabilities must be those that it was sampled with, and a run that goes on must give the numbers of
    one that never stopped. Its config, and so what is saved, keeps the rates.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


def load_backbone(
    model: str, dtype: torch.dtype, trust_remote_code: bool = False, *, pickled: bool = False
) -> PreTrainedModel:
    """Any `AutoModel` of a folder or hub id; whatever head it was saved with is left behind.

    Args:
        model: folder or hub id.
        dtype: of the weights in memory.
        trust_remote_code: run model code shipped with a hub checkpoint.
        pickled: also take a `pytorch_model.bin` (read as tensors only, no code in it is run).

    Raises:
        CastorError: it cannot be loaded, or its weights do not fit its config.

    """
    config = load_config(model, trust_remote_code)
    try:
        loaded: Any = AutoModel.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            use_safetensors=None if pickled else True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CastorError(f"{model!r} cannot be loaded as a backbone: {first_line(error)}") from error
    backbone, info = loaded  # a pair, because of output_loading_info
    check_loaded(model, info)
    backbone.config.use_cache = False
    disable_dropout(backbone)
    return backbone


def hidden_width(backbone: PreTrainedModel) -> int:
    """Size of the backbone's last hidden state. (OPT can project it to the width of its embeddings.)"""
    config = backbone.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


@torch.no_grad()
def isolates_sequences(backbone: Any) -> bool:
    """Does this architecture keep the sequences of a packed row apart?

    Most do: transformers derives a block-diagonal mask from the positions. Some (OPT, Falcon, BLOOM, MPT, Mamba, every
    encoder) silently let a token see the sequences before its own. Found out by trying: two rows that differ in their
    first sequence only must give the second sequence the same hidden states.

    Args:
        backbone: any `AutoModel`; one that cannot be told apart from a leaking one counts as leaking.

    """
    parameters = inspect.signature(backbone.forward).parameters
    if "position_ids" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        return False
    size, device = int(backbone.config.get_text_config().vocab_size), backbone.device
    rows = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 4, 5, 6]], device=device) % size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2, device=device)
    training = backbone.training
    backbone.eval()
    first, second = (
        backbone(input_ids=row[None], position_ids=place[None], use_cache=False).last_hidden_state[0, 3:].float()
        for row, place in zip(rows, positions, strict=True)
    )
    backbone.train(training)
    return bool((first - second).abs().max() <= ISOLATION_TOLERANCE * first.abs().max())


def model_inputs(rows: PackedRows, isolated: bool) -> tuple[PackedRows, dict[str, Any]]:
    """What a model is called with so that no sequence sees another: the rows, as packed or one sequence a row.

    Args:
        rows: packed sequences.
        isolated: what `isolates_sequences` says of the model's backbone.

    Returns:
        the rows that are run, in whose hidden states `flat` finds the tokens, and the keyword arguments of the call.

    """
    if isolated:
        return rows, {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}
    rows, mask = rows.one_per_row()
    return rows, {"input_ids": rows.input_ids, "attention_mask": mask, "use_cache": False}


def find_file(model: str, name: str) -> Path | None:
    """A file of a folder or hub id (fetched into the cache); None where it has none of that name."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        found = cached_file(
            model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError as error:
        raise CastorError(
            f"there is no model at {model!r}, no such folder and no hub id that can be reached: {first_line(error)}"
        ) from error
    return Path(found) if found else None


def read_tensors(model: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with one of `prefixes`, on the CPU in their own dtype.

    From safetensors or `pytorch_model.bin`, one file or many. Raises CastorError when the model has neither.
    """
    for name in (SAFETENSORS, PICKLED):
        index = find_file(model, f"{name}.index.json")
        if index is not None:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({file for key, file in where.items() if key.startswith(prefixes)})
        else:
            names = [name]
        files = [find_file(model, file) for file in names]
        if index is not None or files[0] is not None:
            return {key: tensor for file in files if file for key, tensor in _read(file, prefixes).items()}
    raise CastorError(f"{model!r} has neither {SAFETENSORS} nor {PICKLED}: its weights are missing")


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefixes)}  # noqa: SIM118
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def check_loaded(model: str, info: dict) -> None:
    """Raise CastorError when a checkpoint left parameters uninitialised or held others.

    It is then of another architecture.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        example = (missing or mismatched)[0]
        raise CastorError(
            f"{model!r} holds weights of another architecture: {len(missing)} missing and {len(mismatched)} of "
            f"another shape, e.g. {example}"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text, for messages of one sentence."""
    return str(error).strip().split("\n", 1)[0]
