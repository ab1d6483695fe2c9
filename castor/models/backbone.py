"""Loading a transformers backbone, and running packed rows through any of them without sequences seeing each other."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from castor.io.errors import CastorError
from castor.io.files import read_json
from castor.model_reference import PICKLED, SAFETENSORS, ModelLike, ModelReference
from castor.models.prefixes import ContinuedRows, SharedRows
from castor.packing import PackedRows, pack_rows

ISOLATION_TOLERANCE = 1e-3  # of the largest hidden value; a sequence that is seen changes another's by far more
OF_THE_EFFECT = 0.1  # root mean square of an error, of that of what a beginning does: bfloat16 rounds
Packing: TypeAlias = Literal["masked", "varlen", "shared", "apart"]
"""How sequences of packed rows are kept apart: by a mask that transformers derives from the positions, by an attention
kernel that is told where they begin (`castor.models.attention`; `shared`: of those that begin alike, the beginning is
computed once), or not at all, so that each gets a row of its own.
"""


def load_config(model: ModelLike) -> PreTrainedConfig:
    """The config of a model. Raises CastorError when there is none, or it ships code that is not trusted."""
    reference = ModelReference.of(model)
    try:
        return AutoConfig.from_pretrained(reference.local(weights=False), trust_remote_code=reference.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise reference.load_error(error, "cannot be loaded, it is no model folder or hub id") from error


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


def load_backbone(model: ModelLike, dtype: torch.dtype, *, pickled: bool = False) -> PreTrainedModel:
    """Any `AutoModel`; whatever head it was saved with is left behind. Arguments and errors of `load_weights`."""
    return load_weights(AutoModel, model, dtype, "as a backbone", pickled=pickled)


def load_weights(
    auto_class: Any, model: ModelLike, dtype: torch.dtype, role: str, *, pickled: bool = False
) -> PreTrainedModel:
    """A model's weights in one of transformers' auto classes, without a cache of keys and values and without dropout.

    Args:
        auto_class: `AutoModel`, `AutoModelForCausalLM`, ...
        model: a reference, or a folder or hub id whose code is not trusted.
        dtype: of the weights in memory.
        role: what it is to be loaded as, for messages.
        pickled: also take a `pytorch_model.bin` (read as tensors only, no code in it is run).

    Raises:
        CastorError: it cannot be loaded, ships code that is not trusted, or its weights do not fit its config.

    """
    reference = ModelReference.of(model)
    config = load_config(reference)
    try:
        loaded, info = auto_class.from_pretrained(
            reference.local(pickled=pickled),
            config=config,
            dtype=dtype,
            trust_remote_code=reference.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_loaded` tells of them
            use_safetensors=None if pickled else True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise reference.load_error(error, f"cannot be loaded {role}") from error
    check_loaded(reference, info)
    loaded.config.use_cache = False
    # saving undoes these; transformers' loader for shards also notes those that the checkpoint did not call for
    loaded._weight_conversions = [each for each in loaded._weight_conversions if each.was_used()]
    disable_dropout(loaded)
    return cast(PreTrainedModel, loaded)


def decoder_layers(model: PreTrainedModel) -> tuple[list[nn.Module], nn.ModuleList] | None:
    """The layers of a transformers model, and the parts beside which they stand, in the order of their work; None for
    an architecture in which they are not found.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        for part in module.children():
            if isinstance(part, nn.ModuleList) and len(part) == count:
                return list(module.children()), part
    return None


def hidden_width(backbone: PreTrainedModel) -> int:
    """Size of the backbone's last hidden state. (OPT can project it to the width of its embeddings.)"""
    config = backbone.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


@torch.no_grad()
def isolates_sequences(backbone: Any, packing: Packing = "masked") -> bool:
    """Does this architecture keep the sequences of packed rows apart, within a row and from row to row?

    Most do: transformers derives a block-diagonal mask from the positions. Some (OPT, Falcon, BLOOM, MPT, Mamba, every
    encoder) silently let a token see the sequences before its own, and some attention functions find the sequences of
    a single row only. Found out by trying: in a batch of rows with different cuts, every other sequence gets other
    tokens, which must leave the hidden states of those in between as they were; then the same the other way round.

    Args:
        backbone: any `AutoModel`; one that cannot be told apart from a leaking one counts as leaking.
        packing: how it is told where sequences begin.

    """
    parameters = inspect.signature(backbone.forward).parameters
    if "position_ids" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        return False
    size, device = int(backbone.config.get_text_config().vocab_size), backbone.device
    lengths = torch.tensor([3, 3, 2, 2, 5, 1, 4, 2, 2])  # three rows of three sequences
    shape = (3, int(lengths.sum()) // 3)
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()]).view(shape).to(device)
    side = torch.arange(len(lengths)).repeat_interleave(lengths).view(shape).to(device) % 2
    tokens = torch.arange(positions.numel(), device=device).view(shape) % size

    def hidden(tokens: Tensor) -> Tensor:
        rows = PackedRows(tokens, positions, torch.arange(tokens.numel(), device=device))
        return backbone(**model_inputs(rows, packing)[1]).last_hidden_state.float().view(*shape, -1)

    training = backbone.training
    backbone.eval()
    try:
        before = hidden(tokens)
        after = [hidden(torch.where(side == kept, tokens, (tokens + 1) % size)) for kept in (0, 1)]
    finally:
        backbone.train(training)
    moved = torch.stack([(after[kept] - before)[side == kept].abs().max() for kept in (0, 1)]).max()
    return bool(moved <= ISOLATION_TOLERANCE * before.abs().max())


@torch.no_grad()
def shares_beginnings(backbone: Any) -> bool:
    """Are hidden states the same when sequences that begin alike share their beginning? Its kernel is a varlen one.

    Found out by trying. The error has to be small beside what a beginning does to the tokens after it, which a kernel
    that loses sight of it would leave out: numbers are rounded otherwise.
    """
    size = int(backbone.config.get_text_config().vocab_size)
    beginning, lengths = 13, np.array([17, 19, 15, 16])
    others = np.arange(int(lengths.sum())) * 7 % size
    place = np.concatenate([np.arange(length) for length in lengths])
    own = torch.from_numpy(place >= beginning).to(backbone.device)

    def hidden(first: int, packing: Packing) -> Tensor:
        tokens = np.where(place < beginning, (first + place) % size, others)
        rows = pack_rows(tokens, lengths, int(lengths.max())).to(backbone.device)
        assert rows.shared is not None
        rows, inputs = model_inputs(rows, packing)
        return backbone(**inputs).last_hidden_state.float().flatten(0, 1)[rows.flat]

    training = backbone.training
    backbone.eval()
    try:
        expected, found, other = hidden(0, "varlen"), hidden(0, "shared"), hidden(5, "varlen")
    finally:
        backbone.train(training)
    return bool((found - expected).norm() <= OF_THE_EFFECT * (other - expected)[own].norm())


def packing_of(backbone: nn.Module) -> Packing:
    """How the backbone is run on packed rows unless something faster is found: with a mask if that isolates."""
    return "masked" if isolates_sequences(backbone) else "apart"


def model_inputs(rows: PackedRows, packing: Packing) -> tuple[PackedRows, dict[str, Any]]:
    """What a model is called with so that no sequence sees another.

    Args:
        rows: packed sequences.
        packing: of the model's backbone.

    Returns:
        the rows that are run, in whose hidden states `flat` finds the tokens, and the keyword arguments of the call.

    """
    if isinstance(rows, ContinuedRows) and packing in ("masked", "apart"):
        raise ValueError("only a varlen kernel knows what was read of a sequence before")
    if packing == "apart":
        rows, mask = rows.one_per_row()
        return rows, {"input_ids": rows.input_ids, "attention_mask": mask, "use_cache": False}
    if packing == "shared" and rows.shared is not None:
        rows = SharedRows.of(rows)
    elif packing != "masked" and not isinstance(rows, ContinuedRows):
        rows = rows.in_one_row()
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}
    if packing != "masked":  # by the names that transformers' layers hand on to their attention function
        cuts, longest = rows.boundaries()
        inputs |= {f"cu_seq_lens_{side}": cuts for side in "qk"} | {f"max_length_{side}": longest for side in "qk"}
        if isinstance(rows, SharedRows | ContinuedRows):
            inputs["prefixes"] = rows
    return rows, inputs


def find_file(model: ModelLike, name: str) -> Path | None:
    """A file of a model, other than its weights; None where it has none of that name."""
    path = ModelReference.of(model).local(weights=False) / name
    return path if path.is_file() else None


def read_tensors(model: ModelLike, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with one of `prefixes`, on the CPU in their own dtype.

    From safetensors or `pytorch_model.bin`, one file or many. Raises CastorError when the model has neither.
    """
    folder = ModelReference.of(model).local(pickled=True)
    for name in (SAFETENSORS, PICKLED):
        index = folder / f"{name}.index.json"
        if index.is_file():
            where = read_json(index)["weight_map"]
            names = sorted({file for key, file in where.items() if key.startswith(prefixes)})
            return {key: tensor for file in names for key, tensor in _read(folder / file, prefixes).items()}
        if (folder / name).is_file():
            return _read(folder / name, prefixes)
    raise CastorError(f"{model} has neither {SAFETENSORS} nor {PICKLED}: its weights are missing")


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefixes)}  # noqa: SIM118
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def check_loaded(model: ModelLike, info: dict[str, Any]) -> None:
    """Raise CastorError when a checkpoint left parameters uninitialised, or holds them in other shapes.

    Its weights are then those of another architecture, or of another config.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise CastorError(
            f"{model} does not fit together: by its config {name} is {list(wanted)}, in its weights {list(found)} "
            f"({len(mismatched)} such parameters): take config and weights of the same model"
        )
    if missing:
        raise CastorError(
            f"{model} holds weights of another architecture: {len(missing)} parameters are missing, e.g. {missing[0]}"
        )
