"""A frozen model as a judge of texts: its tokenizer, its prompt format and its context around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.io.errors import CastorError
from castor.model_reference import ModelLike
from castor.models.backbone import load_config
from castor.models.classifier_card import block_of
from castor.models.moderation import is_moderation_model
from castor.models.policy import context_length
from castor.models.score import ScoreModel
from castor.scoring.frozen import SHOWN, FrozenModel, Progress


class TooLongError(CastorError):
    """A text is longer than a model reads. The message is meant for whoever gave the text."""


@dataclass(frozen=True)
class TextModel:
    """From texts to token ids, formatted as in training, and from there to the model's outputs."""

    frozen: FrozenModel
    template: PromptTemplate
    context: int | None  # tokens; None where the model's config does not say
    one_piece: bool = False  # prompt and response are tokenised as one text

    @classmethod
    def around(cls, frozen: FrozenModel, model: ModelLike, template: str) -> TextModel:
        """With the tokenizer and the context of the model that `frozen` was loaded from.

        `template` `auto` is the format that an exported classifier notes, where it is one.
        """
        exported = block_of(load_config(model))
        if exported is not None and template == "auto":
            template = exported["input"]["template"]
        # published moderation classifiers were trained on texts tokenised in one piece
        ours = exported is not None or is_moderation_model(model)
        one_piece = not isinstance(frozen.model, ScoreModel) and not ours
        return cls(frozen, PromptTemplate(load_tokenizer(model), template), context_length(model), one_piece)

    def encode(self, text: Exchange) -> NDArray[np.int64]:
        """Token ids [length] of the whole conversation. Raises TooLongError when they exceed the model's context."""
        template = self.template
        if self.one_piece:
            tokens = template.encode_text(template.prompt_text(text.prompt, text.history) + text.response)
            end = template.tokenizer.eos_token_id
            tokens = tokens if tokens[-1:] == [end] else [*tokens, end]
        else:
            tokens = [*template.encode_prompt(text.prompt, text.history), *template.encode_response(text.response)]
        if self.context is not None and len(tokens) > self.context:
            raise TooLongError(
                f"prompt and response have {len(tokens)} tokens, more than {self.frozen.name}'s context of "
                f"{self.context} (prompt {text.prompt[:SHOWN]!r}): shorten them"
            )
        return np.array(tokens, dtype=np.int64)

    def outputs(self, texts: Sequence[Exchange]) -> NDArray[np.float32]:
        """[N] scores, or [N, K] logits of a moderation model, at the end-of-text tokens.

        Raises TooLongError for a text, and CastorError for an output that is not finite.
        """
        return self.frozen.outputs([self.encode(text) for text in texts], lambda i: texts[i].prompt)

    def outputs_of_fitting(
        self, texts: Sequence[Exchange], max_length: int, on: Progress | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which of N texts [N] have at most `max_length` tokens and fit the context, and outputs of those, in order.

        Raises CastorError for an output that is not finite.
        """
        kept, sequences = np.zeros(len(texts), dtype=bool), []
        for number, text in enumerate(texts):
            try:
                tokens = self.encode(text)
            except TooLongError:
                continue
            if len(tokens) <= max_length:
                kept[number] = True
                sequences.append(tokens)
        where = np.flatnonzero(kept)
        return kept, self.frozen.outputs(sequences, lambda i: texts[where[i]].prompt, on)
