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

    from castor.scoring.frozen import FrozenModel
    from castor.scoring.moderator import Moderator
    from castor.scoring.text_model import TextModel

MAX_BATCH, BATCH_WAIT_S = 64, 0.0
HEALTH_S = 60.0  # a judgement that takes longer is taken for none
PROBE = Exchange("Hello", "Hello")

Encoded = dict[JudgeName, "NDArray[np.int64]"]  # token ids [length] for each judge that is asked
Waiting = tuple[Encoded, str | None]  # and the stream that it is a window of


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
        self.frozen: dict[str, FrozenModel] = {kind: model.frozen for kind, model in self.scores.items()}
        if self.moderator is not None:
            self.frozen["moderation"] = self.moderator.text_model.frozen
        memory = config.judges.kv_cache_mib << 20
        self.read = {kind: model.prefixes(memory) if memory else None for kind, model in self.frozen.items()}

    async def judge(
        self, texts: list[Exchange], asked: tuple[JudgeName, ...], stream: str | None = None
    ) -> list[Judgement]:
        """What each judge that is asked, and there is, says of each text.

        A text of a `stream` begins as the one of that name before it, and what was read of that is not read again.
        A number that is not finite is handed on: it must fail its own text only, and whoever acts on it checks it.
        Raises TooLong for a text longer than a judge's context.
        """
        encoded = [self._encode(text, asked) for text in texts]
        return list(await asyncio.gather(*(self._judge_batch((each, stream)) for each in encoded)))

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
    async def _judge_batch(self, waiting: list[Waiting]) -> list[Judgement]:
        return await asyncio.to_thread(self._judged, waiting)

    def _judged(self, waiting: list[Waiting]) -> list[Judgement]:
        """All texts that wait, whoever asked: each model makes one pass over those that it is asked for."""
        found: list[dict[str, Any]] = [{} for _ in waiting]
        for kind in {kind for encoded, _ in waiting for kind in encoded}:
            where = [number for number, (encoded, _) in enumerate(waiting) if kind in encoded]
            values = self._outputs(kind, [waiting[number] for number in where])
            outputs: list[Any]
            if kind == "moderation":
                assert self.moderator is not None
                outputs = _moderated(self.moderator, values)
            else:
                outputs = values.tolist()
            for number, output in zip(where, outputs, strict=True):
                found[number][kind] = output
        return [Judgement(**each) for each in found]

    def _outputs(self, kind: JudgeName, waiting: list[Waiting]) -> NDArray[np.float32]:
        """One model's outputs of texts, some of which may not be finite."""
        sequences, model, read = [encoded[kind] for encoded, _ in waiting], self.frozen[kind], self.read[kind]
        streams = [stream for _, stream in waiting]
        if read is None or not any(streams):
            return model.unchecked_outputs(sequences)
        return model.continued_outputs(sequences, streams, read)


def _moderated(moderator: Moderator, outputs: NDArray[np.float32]) -> list[Moderation]:
    import numpy as np

    from castor.scoring.moderator import verdicts

    logits, categories, found = outputs.astype(np.float64), moderator.info.categories, []
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
