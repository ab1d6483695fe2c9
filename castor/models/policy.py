"""The policy: a causal language model that returns the log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.models.backbone import (
    check_loaded,
    disable_dropout,
    first_line,
    isolates_sequences,
    load_config,
    model_inputs,
)
from castor.packing import PackedRows

PREFIX = "lm."  # of a parameter in a PolicyModel; outside it weights go under their Hugging Face names


class PolicyModel(nn.Module):
    """Any `AutoModelForCausalLM`, asked for log-probabilities instead of logits."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm
        self.isolated = isolates_sequences(lm.base_model)

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
        disable_dropout(lm)
        return cls(lm)

    def forward(
        self, rows: PackedRows, positions: Tensor, temperature: float = 1.0, with_entropy: bool = False
    ) -> Tensor:
        """Log-probability of the token at each of `positions` given all before it.

        Args:
            rows: packed sequences.
            positions: [K] int64 flat indices into the tokens of the sequences, none of them a first token.
            temperature: the logits are divided by it, as the sampler does.
            with_entropy: also return the entropy of the whole distribution, in nats.

        Returns:
            [K] float32; with entropy [2, K], log-probabilities first.
        """
        rows, inputs = model_inputs(rows, self.isolated)
        width = rows.input_ids.shape[1]
        target = rows.flat[positions]  # where the predicted tokens lie in the flattened rows
        source_row, source_column = (target - 1) // width, (target - 1) % width
        # only columns that predict something go through the vocabulary projection
        columns, column_index = torch.unique(source_column, return_inverse=True)
        if len(columns) == 0:  # an empty micro-batch: run everything once, return nothing
            columns = torch.zeros(1, dtype=torch.int64, device=rows.input_ids.device)
        logits = self.lm(**inputs, logits_to_keep=columns).logits
        chosen = logits[source_row, column_index].float() / temperature
        tokens = rows.input_ids.view(-1)[target]
        distribution = torch.log_softmax(chosen, -1)
        result = distribution.gather(-1, tokens[:, None]).squeeze(-1)
        if with_entropy:
            result = torch.stack([result, -(distribution.exp() * distribution).sum(-1)])
        return result + 0.0 * logits.sum() if len(positions) == 0 else result


def save_policy(
    folder: Path, model: nn.Module, weights: Mapping[str, Tensor], source: str, trust_remote_code: bool
) -> None:
    """Write a policy as a Hugging Face folder with the tokenizer of `source`, whole or not at all.

    `weights` are the full ones, by the names of `model`, a `PolicyModel`, or by their Hugging Face names.
    """
    assert isinstance(model, PolicyModel)
    with atomic_folder(folder) as aside:
        model.lm.save_pretrained(aside, state_dict={k.removeprefix(PREFIX): v for k, v in weights.items()})
        load_tokenizer(source, trust_remote_code).save_pretrained(aside)


def context_length(model: str, trust_remote_code: bool = False) -> int | None:
    """Longest sequence the model was made for, in tokens; None where its config does not say."""
    config = load_config(model, trust_remote_code)
    return getattr(config, "max_position_embeddings", None)
