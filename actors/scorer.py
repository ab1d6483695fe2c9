"""The judge of a signal: scores of finished responses, from a frozen model, a function or a remote scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import ray
from numpy.typing import NDArray

from castor.config.signal import Classifier, Signal
from castor.config.training import Engine
from castor.experience import Experience
from castor.io.errors import CastorError
from castor.model_reference import ModelReference

if TYPE_CHECKING:  # transformers takes seconds to import, which the driver need not spend
    from castor.data.tokens.template import PromptTemplate

TextJudge = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts, responses -> one finite number a response


@dataclass(frozen=True)
class PolicyText:
    """What turns the policy's tokens back into text: the folder or hub id of its tokenizer, and the prompt format."""

    model: str
    template: str
    trust_remote_code: bool = False

    def open(self) -> PromptTemplate:
        """The prompt format with its tokenizer."""
        from castor.data.tokens.template import PromptTemplate, load_tokenizer

        return PromptTemplate(load_tokenizer(ModelReference(self.model, None, self.trust_remote_code)), self.template)


class Scorer(Protocol):
    """What a signal asks for scores."""

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores of the responses, all finite."""


def signal_scorer(signal: Signal, model: str | None, policy: PolicyText, directory: Path | None = None) -> Scorer:
    """The signal's judge, loaded into this process.

    Args:
        signal: its config.
        model: folder or hub id of its score or moderation model, where it has one.
        policy: how to read the experience as text.
        directory: where a function's module is looked for, too.

    Raises CastorError when the model, the function or what the remote scorer needs is not there.
    """
    if signal.function is not None:
        from castor.scoring.function import FunctionScorer

        return TextScorer(FunctionScorer(signal.function, directory), policy.open())
    if signal.http is not None:
        from castor.scoring.http import RemoteScorer

        field = signal.http.field or ("reward" if signal.role == "objective" else "cost")
        return TextScorer(RemoteScorer(signal.http, field), policy.open())
    assert model is not None  # `Signal` has exactly one judge
    return model_scorer(model, signal.engine, policy, signal.classifier, signal.template)


def model_scorer(
    model: str, engine: Engine, policy: PolicyText, classifier: Classifier | None = None, template: str | None = None
) -> Scorer:
    """A frozen score model, or with `classifier` a moderation model.

    It reads the policy's own tokens, unless its tokenizer is another one or it has a prompt format of its own: then
    prompt and response are encoded anew from their text.
    """
    from castor.data.tokens.template import PromptTemplate, load_tokenizer, tokenise_alike

    own, spoken = load_tokenizer(model), policy.open()
    if template is None and tokenise_alike(spoken.tokenizer, own):
        return TokenScorer(model, engine, classifier)
    return TextScorer(_ModelOnTexts(model, engine, classifier, PromptTemplate(own, template or "auto")), spoken)


class TokenScorer:
    """A frozen model that reads the policy's tokens."""

    def __init__(self, model: str, engine: Engine, classifier: Classifier | None = None) -> None:
        from castor.models.classifier_cost import ClassifierCost
        from castor.models.device import device, resolve_dtype
        from castor.models.load import load_score_model
        from castor.models.moderation import ModerationModel
        from castor.models.score import ScoreModel

        self.engine, self.device = engine, device()
        dtype = resolve_dtype(engine.dtype)
        frozen: ScoreModel | ClassifierCost
        if classifier is None:
            frozen = load_score_model(model, dtype)
        else:
            frozen = ClassifierCost(ModerationModel.load(model, dtype), classifier, model)
        self.model = frozen.eval().requires_grad_(False).to(self.device)

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores at the last token of each response."""
        from engines.batch import forward_by_budget

        return forward_by_budget(
            experience,
            lambda micro: self.model(micro.rows, micro.last_positions),
            lengths=np.ones(len(experience), dtype=np.int64),
            engine=self.engine,
            device=self.device,
        )


class TextScorer:
    """A judge of texts, which are decoded from the policy's tokens here."""

    def __init__(self, judge: TextJudge, template: PromptTemplate) -> None:
        """`template` is the policy's."""
        self.judge, self.template = judge, template

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores. Raises CastorError as the judge does, and when a prompt cannot be decoded."""
        ends = np.cumsum(experience.lengths)
        middles = ends - experience.response_lengths
        starts = middles - experience.prompt_lengths
        tokens = experience.tokens.tolist()
        prompts = [self.template.decode_prompt(tokens[a:b]) for a, b in zip(starts, middles, strict=True)]
        responses = [self.template.decode_response(tokens[a:b]) for a, b in zip(middles, ends, strict=True)]
        return np.array(self.judge(prompts, responses), dtype=np.float32)


class _ModelOnTexts:
    """A frozen model with a tokenizer or a prompt format of its own, as a judge of texts."""

    def __init__(self, model: str, engine: Engine, classifier: Classifier | None, template: PromptTemplate) -> None:
        from castor.models.policy import context_length

        self.name, self.template, self.context = model, template, context_length(model)
        self.frozen = TokenScorer(model, engine, classifier)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Scores at the end-of-text token of each response. Raises CastorError for one longer than the context."""
        import torch

        from castor.data.tokens.samples import Samples
        from castor.packing import micro_batches

        texts = list(zip(prompts, responses, strict=True))
        samples = Samples(self.template, ([text] for text in texts), self.context or np.iinfo(np.int64).max)
        if samples.too_long:
            first = min(set(range(len(texts))) - set(samples.kept.tolist()))
            raise CastorError(
                f"prompt and response are longer than the context of {self.context} tokens in the tokenizer of "
                f"{self.name} (prompt {prompts[first][:200]!r}): lower rollout.max_new_tokens or max_prompt_tokens"
            )
        frozen, engine, lengths = self.frozen, self.frozen.engine, samples.lengths()
        scores = np.empty(len(texts), dtype=np.float64)
        (pieces,) = micro_batches(lengths, [range(len(texts))], engine.micro_batch_tokens)
        with torch.no_grad():
            for piece in pieces:
                chosen = np.asarray(piece, dtype=np.int64)
                packed = samples.pack(chosen, engine.pack_length).to(frozen.device)
                scores[chosen] = frozen.model(packed.rows, packed.last_positions()).double().cpu().numpy()
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"{self.name} returned a score that is not finite")
        return scores.tolist()


@ray.remote
class ScoreWorker:
    """A scorer of its own, for evaluation."""

    def __init__(
        self, model: str, engine: Engine, threads: int, policy: PolicyText, classifier: Classifier | None = None
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.scorer = model_scorer(model, engine, policy, classifier)

    def ready(self) -> None:
        """Answers once the model is loaded."""

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores."""
        return self.scorer.score(experience)
