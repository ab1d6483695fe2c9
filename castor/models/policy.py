"""The policy: a causal language model that returns the log-probabilities of given tokens."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from castor.algorithms.logprobs import chunked_logprobs, token_logprobs
from castor.config.rollout import HeadType
from castor.config.training import Engine
from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.model_reference import ModelLike
from castor.models.backbone import load_config, load_weights, model_inputs, packing_of
from castor.models.head import compute_logits_in_float32
from castor.models.read_tokens import computed_at, spares_tokens
from castor.models.vocabulary_head import Projection, gives_head_output, instead_of_logits
from castor.packing import PackedRows

LM = "lm."  # what the parameters of the language model are called inside a policy


class PolicyModel(nn.Module):
    """Any `AutoModelForCausalLM`, asked for log-probabilities instead of logits.

    Logits are made of the asked tokens alone: of more than `engine.chunk_tokens` a chunk at a time, in the backward
    pass once more, so that no tensor of all tokens x vocabulary is ever held; else, or where the output layer has
    adapters, all at once. A model that does something to its output layer's logits makes them for every column that
    holds an asked token.
    """

    def __init__(self, lm: PreTrainedModel, *, engine: Engine | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.packing = packing_of(lm.base_model)
        self.spares = spares_tokens(lm.base_model, self.packing)
        self.divisible = gives_head_output(lm)
        self.chunk_tokens = (engine or Engine()).chunk_tokens(int(lm.config.get_text_config().vocab_size))

    @classmethod
    def load(
        cls, model: ModelLike, dtype: torch.dtype, *, engine: Engine | None = None, head_dtype: HeadType = "model"
    ) -> PolicyModel:
        """The causal language model of a reference; `model`, `dtype` and errors are those of `load_weights`.

        `engine` says how much of it is computed at a time; None: the default. With `head_dtype` float32 logits are
        computed in float32, whatever `dtype` is.
        """
        lm = load_weights(AutoModelForCausalLM, model, dtype, "as a causal language model")
        if head_dtype == "float32":
            compute_logits_in_float32(lm)
        return cls(lm, engine=engine)

    def save(self, folder: Path, weights: dict[str, Tensor], tokenizer_from: ModelLike) -> None:
        """Write full weights by `PolicyModel` parameter name, as `save_language_model`."""
        own = {name.removeprefix(LM): tensor for name, tensor in weights.items()}
        save_language_model(folder, self.lm, own, tokenizer_from)

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
        rows, inputs = model_inputs(rows, self.packing)
        width = rows.input_ids.shape[1]
        # where the predicted tokens and those before them lie in the flattened rows
        target, source = rows.flat[positions], rows.flat[positions - 1]
        source_row, source_column = source // width, source % width
        # only columns that predict something go through the vocabulary projection
        columns, column_index = torch.unique(source_column, return_inverse=True)
        if len(columns) == 0:  # an empty micro-batch: run everything once, return nothing
            columns = torch.zeros(1, dtype=torch.int64, device=rows.input_ids.device)
        tokens = rows.input_ids.view(-1)[target]
        head = self.lm.get_output_embeddings()
        sparing = computed_at(self.lm.base_model, source, self.spares)
        if not self.divisible or len(tokens) == 0:
            with sparing:
                logits = self.lm(**inputs, logits_to_keep=columns).logits
            result = token_logprobs(logits[source_row, column_index], tokens, temperature, with_entropy).float()
            return result + 0.0 * logits.sum() if len(tokens) == 0 else result
        divided = len(tokens) > self.chunk_tokens and next(head.children(), None) is None

        def logprobs(project: Projection, hidden: Tensor) -> Tensor:
            chosen = hidden[source_row, column_index]  # a column is kept for all rows, and few of them predict there
            if divided:
                return chunked_logprobs(project, chosen, tokens, temperature, with_entropy, chunk=self.chunk_tokens)
            return token_logprobs(project(chosen), tokens, temperature, with_entropy)

        with sparing, instead_of_logits(head, logprobs):
            return cast(Tensor, self.lm(**inputs, logits_to_keep=columns).logits).float()


def save_language_model(
    folder: Path, lm: PreTrainedModel, weights: dict[str, Tensor], tokenizer_from: ModelLike
) -> None:
    """Write a Hugging Face folder, whole or not at all; code that the model or the tokenizer ships goes along.

    Args:
        folder: written aside and renamed.
        lm: only its class and config are used; under ZeRO-3 its own weights may be shards.
        weights: full weights by the language model's parameter names.
        tokenizer_from: the model whose tokenizer is copied.

    """
    with atomic_folder(folder) as aside:
        lm.save_pretrained(aside, state_dict=weights)
        load_tokenizer(tokenizer_from).save_pretrained(aside)


def context_length(model: ModelLike) -> int | None:
    """Longest sequence the model was made for, in tokens; None where its config does not say."""
    return getattr(load_config(model), "max_position_embeddings", None)
