"""Scores of experience, as signals and the closing comparison ask for them: from tokens, or from texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from castor.config.judge import Classifier, Judge, Measures
from castor.config.training import Engine
from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import decode_response, load_tokenizer, tokenise_alike
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.model_reference import ModelLike, ModelReference
from castor.scoring.frozen import FrozenModel
from castor.scoring.function import FunctionScorer
from castor.scoring.http import RemoteScorer
from castor.scoring.text_model import TextModel, TooLongError

TextJudge = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts, responses -> one finite number a response


class Scorer(Protocol):
    """What a signal asks for scores."""

    frozen: FrozenModel | None  # the model that judges; None: no model of this process does

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores of the responses, all finite."""


def judge_scorer(
    judge: Judge,
    measures: Measures,
    model: ModelLike | None,
    engine: Engine,
    policy: ModelReference,
    directory: Path | None = None,
) -> Scorer:
    """A judge, loaded into this process.

    Args:
        judge: its config.
        measures: what it gives.
        model: its score or moderation model, where it has one; `engine` gives its type and batch sizes.
        policy: whose tokens the experience holds.
        directory: where a function's module is looked for, too.

    Raises CastorError when the model, the function or what the remote scorer needs is not there.
    """
    if judge.function is not None:
        return TextScorer(FunctionScorer(judge.function, directory), _tokenizer(policy))
    if judge.http is not None:
        return TextScorer(RemoteScorer(judge.http, judge.http.field or measures), _tokenizer(policy))
    assert model is not None  # `Judge` is exactly one of the three
    return model_scorer(model, engine, policy, judge.classifier, judge.template)


def model_scorer(
    model: ModelLike,
    engine: Engine,
    policy: ModelReference,
    classifier: Classifier | None = None,
    template: str | None = None,
) -> Scorer:
    """A frozen score model, or with `classifier` a moderation model; `engine` gives its type and batch sizes.

    It reads the policy's own tokens, unless its tokenizer is another one or it has a prompt format of its own: then
    prompt and response are encoded from their text.
    """
    spoken = _tokenizer(policy)
    frozen = FrozenModel.load_scores(
        model, engine.dtype, engine.micro_batch_tokens, engine.pack_length, classifier=classifier
    )
    if template is None and tokenise_alike(spoken, load_tokenizer(model)):
        return TokenScorer(frozen)
    return TextScorer(_of_rollouts(TextModel.around(frozen, model, template or "auto")), spoken, frozen)


class TokenScorer:
    """A frozen model that reads the policy's tokens."""

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen: FrozenModel | None = frozen
        self._outputs = frozen.outputs

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores at the last token of each response. Raises CastorError for one that is not finite."""
        sequences = np.split(experience.tokens, np.cumsum(experience.lengths)[:-1])
        return self._outputs(sequences[: len(experience)], lambda i: experience.prompts[i])


class TextScorer:
    """A judge of texts: the prompts that came with the tokens, and the responses decoded from them."""

    def __init__(self, judge: TextJudge, tokenizer: PreTrainedTokenizerBase, frozen: FrozenModel | None = None) -> None:
        """`tokenizer` is the policy's; `frozen`: the model that judges, where one of this process does."""
        self.judge, self.tokenizer, self.frozen = judge, tokenizer, frozen

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores. Raises CastorError as the judge does."""
        ends = np.cumsum(experience.lengths)
        starts, tokens = ends - experience.response_lengths, experience.tokens.tolist()
        responses = [decode_response(self.tokenizer, tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
        return np.array(self.judge(experience.prompts, responses), dtype=np.float32)


def _of_rollouts(model: TextModel) -> TextJudge:
    """A text model as a judge of rollouts, whose length the config decides."""

    def judge(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        try:
            return model.outputs([Exchange(*pair) for pair in zip(prompts, responses, strict=True)]).tolist()
        except TooLongError as error:
            raise CastorError(f"{error}; lower rollout.max_new_tokens or max_prompt_tokens") from None

    return judge


def _tokenizer(policy: ModelReference) -> PreTrainedTokenizerBase:
    return load_tokenizer(policy)
