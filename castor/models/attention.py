"""Packed rows through an attention kernel for sequences of any lengths: no mask is made, no head is repeated.

For packed rows transformers' own functions make a mask [rows, 1, L, L], with which no flash kernel runs, and repeat
every key and value head once per query head. A varlen kernel takes the tokens of all rows one after the other, and the
places where sequences begin. On a GPU it is torch's, on a CPU `sequence_by_sequence`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from castor.models.backbone import isolates_sequences, shares_beginnings
from castor.models.onednn import use_onednn
from castor.models.prefixes import ContinuedRows, SharedRows

Kernel: TypeAlias = Callable[..., Any]  # gives a tensor, called as `torch.nn.attention.varlen.varlen_attn`
_HALVES = (torch.bfloat16, torch.float16)
HEAD_SIZES = range(8, 257, 8)  # those of the flash kernels
# what a layer may say to an attention function without asking for anything
_ASKS_NOTHING = frozenset({"position_ids", "position_embeddings", "cu_seq_lens_k", "max_length_k"})
_Model = TypeVar("_Model", bound=nn.Module)


class UnsupportedAttention(ValueError):
    """A layer asks for attention that a varlen kernel does not compute."""


def place(model: _Model, device: torch.device) -> _Model:
    """Move a policy, score or moderation model to `device`, in place. Its packed rows then go through a varlen kernel.

    They do where the kernel runs and the backbone provably keeps sequences apart with it; otherwise they keep their
    mask.
    """
    model.to(device)
    if device.type == "cpu":
        use_onednn(model)
    kernel = _kernel_of(device)
    if kernel is not None:
        for part in model.modules():
            if hasattr(part, "packing") and (device.type == "cpu" or _inner(part).dtype in _HALVES):
                use_kernel(part, kernel)
    return model


def _kernel_of(device: torch.device) -> Kernel | None:
    if device.type == "cpu":
        return sequence_by_sequence
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    from torch.nn.attention.varlen import varlen_attn  # takes seconds to import

    return varlen_attn


def sequence_by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cuts: Tensor,
    key_cuts: Tensor,
    _longest: int,
    _longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Causal attention [T, heads, D] of sequences that begin at `cuts`, called as torch's `varlen_attn` is here.

    A sequence may have more keys than queries: its queries are those of the last tokens. Sequences of one length go
    through torch's dense kernel together, in float32 at least: its backward pass in bfloat16 takes three times as long.
    """
    assert window_size == (-1, 0)  # causal, no sliding window
    dtype = query.dtype
    query, key, value = (part.to(torch.promote_types(dtype, torch.float32)) for part in (query, key, value))
    lengths, key_lengths = cuts.diff().tolist(), key_cuts.diff().tolist()
    alike: dict[tuple[int, int], list[int]] = {}
    for number, sizes in enumerate(zip(lengths, key_lengths, strict=True)):
        alike.setdefault(sizes, []).append(number)
    queries, keys, values = query.split(lengths), key.split(key_lengths), value.split(key_lengths)
    outputs = list(queries)  # each is put in the place of its queries
    for (length, seen), numbers in alike.items():
        q, k, v = (torch.stack([part[n] for n in numbers]).transpose(1, 2) for part in (queries, keys, values))
        mask = None if length == seen else torch.ones(length, seen, dtype=torch.bool).tril(seen - length)
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=enable_gqa
        )
        for number, output in zip(numbers, found.transpose(1, 2).unbind(), strict=True):
            outputs[number] = output
    return torch.cat(outputs).to(dtype)


def use_kernel(model: Any, kernel: Kernel) -> bool:
    """Let the packed rows of a policy, score or moderation model go through `kernel`, if that is right.

    It is not, and nothing is changed, where sequences of packed rows would see each other (which is found out by
    trying), where a layer asks for what the kernel lacks (a sliding window, capped scores, sinks, a bias, dropout) or
    where the architecture does not let its attention be chosen.
    """
    inner = _inner(model)
    if model.packing != "masked" or not inner._can_set_attn_implementation():
        return False
    name, before = f"castor_{kernel.__name__}", inner.config._attn_implementation
    AttentionInterface.register(name, _attention(kernel))
    AttentionMaskInterface.register(name, _no_mask)
    inner.set_attn_implementation(name)
    try:
        right = isolates_sequences(inner.base_model, "varlen")
    except UnsupportedAttention:
        right = False
    if right:
        model.packing = "shared" if shares_beginnings(inner.base_model) else "varlen"
    else:
        inner.set_attn_implementation(before)
    return right


def _inner(model: nn.Module) -> PreTrainedModel:
    return next(child for child in model.children() if isinstance(child, PreTrainedModel))


def _attention(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    """`kernel` as transformers' layers call an attention function."""

    def attention(
        module: nn.Module,
        query: Tensor,  # [B, heads, L, D]; keys and values may have fewer heads
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,  # [N + 1] int32, see `PackedRows.boundaries`
        max_length_q: int | None = None,
        prefixes: SharedRows | ContinuedRows | None = None,
        **asked: Any,
    ) -> tuple[Tensor, None]:
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        more = [name for name in asked.keys() - _ASKS_NOTHING if asked[name] is not None and asked[name] is not False]
        sizes = {part.shape[-1] for part in (query, key, value)}
        if attention_mask is not None or dropout or more or not is_causal or cu_seq_lens_q is None:
            raise UnsupportedAttention(f"{type(module).__name__} asks for more than packed causal attention: {more}")
        if len(sizes) > 1 or not sizes.issubset(HEAD_SIZES) or query.shape[2] != key.shape[2]:
            raise UnsupportedAttention(f"{type(module).__name__} has heads of {sizes}, which no kernel takes")
        queries, keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
        key_cuts, longest_key = cu_seq_lens_q, max_length_q
        if prefixes is not None:
            layer = getattr(module, "layer_idx", None)
            keys, values, key_cuts, longest_key = prefixes.extended(layer, keys, values)
        output = kernel(
            queries, keys, values, cu_seq_lens_q, key_cuts, max_length_q, longest_key,
            scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return output.unflatten(0, (query.shape[0], query.shape[2])), None

    return attention


def _no_mask(
    *, attention_mask: Tensor | None = None, local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> None:
    """What a model gets in the place of a mask; a window, padding or a mask of its own is refused."""
    if attention_mask is not None or local_size is not None or use_vmap:
        raise UnsupportedAttention("the mask is not that of packed causal attention")
