"""The judges on Ray Serve: a replica holds cost, reward and moderation model, as far as there are such."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from castor.data.rows.schemas import Exchange
from serve.judgement import Judgement, JudgeName, Moderation
from serve.replicas import deployment_options
from serve.targets import Judge, Targets

if TYPE_CHECKING:  # the driver deploys without importing torch and transformers
    import numpy as np
    from numpy.typing import NDArray

    from castor.scoring.moderator import Moderator
    from castor.scoring.text_model import TextModel

MAX_BATCH, BATCH_WAIT_S = 64, 0.0
HEALTH_S = 60.0  # a judgement that takes longer is taken for none
PROBE = Exchange("Hello", "Hello")

Encoded = dict[JudgeName, "NDArray[np.int64]"]  # token ids [length] for each judge that is asked


class TooLong(ValueError):
    """A text that a judge cannot read. It crosses processes, so it is of no class that knows torch."""


class JudgeServer:
    """One replica."""

    def __init__(self, targets: Targets, config: Serve) -> None:
        import torch

        torch.set_num_threads(config.judges.resources.threads)
        self.scores = {
            kind: load_scores(kind, judge, targets.template, config)
            for kind, judge in targets.judges.items()
            if kind != "moderation"
        }
        moderation = targets.judges.get("moderation")
        self.moderator = None if moderation is None else load_moderator(moderation, targets.template, config)

    async def judge(self, texts: list[Exchange], asked: tuple[JudgeName, ...]) -> list[Judgement]:
        """What each judge that is asked, and there is, says of each text.

        A number that is not finite is handed on: it must fail its own text only, and whoever acts on it checks it.
        Raises TooLong for a text longer than a judge's context.
        """
        encoded = [self._encode(text, asked) for text in texts]
        return list(await asyncio.gather(*(self._judge_batch(each) for each in encoded)))

    async def check_health(self) -> None:
        """Judges a short text, so that a replica whose models cannot compute any more is replaced."""
        await asyncio.wait_for(self.judge([PROBE], ("cost", "reward", "moderation")), HEALTH_S)

    def _encode(self, text: Exchange, asked: tuple[JudgeName, ...]) -> Encoded:
        from castor.scoring.text_model import TooLongError

        try:
            encoded: Encoded = {kind: model.encode(text) for kind, model in self.scores.items() if kind in asked}
            if self.moderator is not None and "moderation" in asked:
                encoded["moderation"] = self.moderator.encode(text.prompt, text.response, text.history)
        except TooLongError:
            raise TooLong("longer than a judge's context") from None  # the original names the text, and would be logged
        return encoded

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _judge_batch(self, encoded: list[Encoded]) -> list[Judgement]:
        return await asyncio.to_thread(self._judged, encoded)

    def _judged(self, encoded: list[Encoded]) -> list[Judgement]:
        """All texts that wait, whoever asked: each model makes one pass over those that it is asked for."""
        found: list[dict[str, Any]] = [{} for _ in encoded]
        for kind in {kind for each in encoded for kind in each}:
            where = [number for number, each in enumerate(encoded) if kind in each]
            sequences = [encoded[number][kind] for number in where]
            if kind == "moderation":
                assert self.moderator is not None
                outputs: list[Any] = _moderated(self.moderator, sequences)
            else:
                outputs = self.scores[kind].frozen.unchecked_outputs(sequences).tolist()
            for number, output in zip(where, outputs, strict=True):
                found[number][kind] = output
        return [Judgement(**each) for each in found]


def _moderated(moderator: Moderator, sequences: list[NDArray[np.int64]]) -> list[Moderation]:
    import numpy as np

    from castor.scoring.moderator import verdicts

    logits = moderator.text_model.frozen.unchecked_outputs(sequences).astype(np.float64)
    categories, found = moderator.info.categories, []
    for row in logits[:, None]:
        if not np.isfinite(row).all():
            found.append(Moderation(dict.fromkeys(categories, float("nan")), (), None))
            continue
        verdict = verdicts(row, moderator.info)
        levels = verdict.severity_probabilities
        found.append(
            Moderation(
                dict(zip(categories, verdict.probabilities[0].tolist(), strict=True)),
                tuple(name for name, flag in zip(categories, verdict.labels[0], strict=True) if flag),
                # if it is unsafe, its level counts the cumulative probabilities above one half, as `decide` does
                None if levels is None else 1 + int(levels[0, 2:].sum() > 0.5) + int(levels[0, 3] > 0.5),
            )
        )
    return found


def load_scores(kind: str, judge: Judge, template: str, config: Serve) -> TextModel:
    """A score model, or a moderation model as a cost, on this process's device.

    Raises CastorError when there is no such model, and ValueError when its scores are of another kind.
    """
    from castor.scoring.frozen import FrozenModel
    from castor.scoring.text_model import TextModel

    options, name = config.judges, f"the {kind} model"
    frozen = FrozenModel.load_scores(
        judge.model, options.dtype, options.batch_tokens, classifier=judge.classifier, name=name
    )
    if frozen.score_info.score_type != kind:
        raise ValueError(f"{judge.model} is a {frozen.score_info.score_type} model, not a {kind} model")
    return TextModel.around(frozen, judge.model, template)


def load_moderator(judge: Judge, template: str, config: Serve) -> Moderator:
    """A moderation model on this process's device. Raises CastorError when there is no such model."""
    from castor.models.device import device, resolve_dtype
    from castor.scoring.moderator import Moderator

    options = config.judges
    return Moderator(judge.model, template, resolve_dtype(options.dtype), device(), options.batch_tokens)


def judges_app(targets: Targets, config: Serve) -> Application:
    """The deployment of the judges."""
    options = deployment_options("judges", config.judges)
    return serve.deployment(**options)(JudgeServer).bind(targets, config)
