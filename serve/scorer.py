"""A score model with its tokenizer, from text to score. Imported by replicas only: it needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from castor.config.serve import Serve
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.models.classifier_cost import ClassifierCost
from castor.models.device import device, resolve_dtype
from castor.models.load import load_score_model
from castor.models.moderation import ModerationModel
from castor.models.policy import context_length
from castor.models.score import ScoreModel
from castor.packing import micro_batches, pack_rows
from serve.replicas import TooLongError


@dataclass(frozen=True)
class Scorer:
    """A score model, or a moderation model as one, with its tokenizer.

    Texts are formatted as in training: prompt, response, end-of-text token.
    """

    kind: str
    model: ScoreModel | ClassifierCost
    template: PromptTemplate
    context: int | None
    budget: int

    @classmethod
    def load(cls, kind: str, folder: Path, config: Serve) -> Scorer:
        """From the folder of a finished stage, on this process's device."""
        dtype = resolve_dtype(config.dtype)
        model: ScoreModel | ClassifierCost
        if kind == "cost" and config.cost_classifier is not None:
            model = ClassifierCost(ModerationModel.load(folder, dtype), config.cost_classifier, str(folder))
        else:
            model = load_score_model(folder, dtype)
        if model.info.score_type != kind:
            raise ValueError(f"{folder} holds a {model.info.score_type} model, not a {kind} model")
        model = model.eval().requires_grad_(False).to(device())
        template = PromptTemplate(load_tokenizer(str(folder)), config.template)
        return cls(kind, model, template, context_length(str(folder)), config.score_batch_tokens)

    def encode(self, prompt: str, response: str) -> NDArray[np.int64]:
        """Token ids [length]. Raises TooLongError when they are more than the model's context."""
        tokens = [*self.template.encode_prompt(prompt), *self.template.encode_response(response)]
        if self.context is not None and len(tokens) > self.context:
            raise TooLongError(
                f"prompt and response have {len(tokens)} tokens, more than the {self.kind} model's context of "
                f"{self.context}: shorten them",
            )
        return np.array(tokens, dtype=np.int64)

    @torch.inference_mode()
    def score(self, sequences: Sequence[NDArray[np.int64]]) -> list[float]:
        """The normalised score at the last token of each sequence."""
        lengths = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
        scores = np.empty(len(sequences), dtype=np.float64)
        where = next(self.model.parameters()).device
        (pieces,) = micro_batches(lengths, [range(len(lengths))], self.budget)
        for piece in pieces:
            rows = pack_rows(np.concatenate([sequences[i] for i in piece]), lengths[piece], int(lengths[piece].max()))
            last = torch.from_numpy(np.cumsum(lengths[piece]) - 1)
            scores[piece] = self.model(rows.to(where), last.to(where)).double().cpu().numpy()
        return scores.tolist()
