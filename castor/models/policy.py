"""The policy: a causal language model that returns the log-probabilities of given tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from castor.errors import CastorError
from castor.packing import PackedRows


class PolicyModel(nn.Module):
    """Any `AutoModelForCausalLM`, asked for log-probabilities instead of logits."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    @classmethod
    def load(cls, model: str, dtype: torch.dtype, trust_remote_code: bool = False) -> PolicyModel:
        """From a folder or hub id. Raises CastorError when it is no causal language model or its weights do not fit."""
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CastorError(f"{model!r} cannot be loaded as a causal language model: {first_line(error)}") from error
        lm, info = loaded  # a pair, because of output_loading_info
        check_loaded(model, info)
        lm.config.use_cache = False
        return cls(lm)

    def forward(self, rows: PackedRows, positions: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of the token at each of `positions` given all before it.

        Args:
            rows: packed sequences.
            positions: [K] int64 flat indices into the tokens of the sequences, none of them a first token.
            temperature: the logits are divided by it, as the sampler does.

        Returns:
            [K] float32.
        """
        width = rows.input_ids.shape[1]
        target = rows.flat[positions]  # where the predicted tokens lie in the flattened rows
        source_row, source_column = (target - 1) // width, (target - 1) % width
        # only columns that predict something go through the vocabulary projection
        columns, column_index = torch.unique(source_column, return_inverse=True)
        if len(columns) == 0:  # an empty micro-batch: run everything once, return nothing
            columns = torch.zeros(1, dtype=torch.int64, device=rows.input_ids.device)
        logits = self.lm(
            input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False, logits_to_keep=columns
        ).logits
        chosen = logits[source_row, column_index].float() / temperature
        tokens = rows.input_ids.view(-1)[target]
        logprobs = torch.log_softmax(chosen, -1).gather(-1, tokens[:, None]).squeeze(-1)
        return logprobs + 0.0 * logits.sum() if len(positions) == 0 else logprobs


def context_length(model: str, trust_remote_code: bool = False) -> int | None:
    """Longest sequence the model was made for, in tokens; None where its config does not say."""
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CastorError(f"{model!r} is not a model folder or hub id: {first_line(error)}") from error
    return getattr(config, "max_position_embeddings", None)


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
