"""Requests that were being sampled when a worker died, and the one prompt among them that kills whoever samples it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from actors.rollout import PromptRequest
from castor.data.tokens.prompt_stream import Prompt
from castor.io.errors import CastorError

ALONE_AFTER = 2  # deaths


class DeadlyPrompt(CastorError):
    """A prompt has killed its engine again, alone."""

    def __init__(self, prompt: Prompt, deaths: int) -> None:
        super().__init__(
            f"{deaths} engines died, or fell silent, while they sampled from {prompt.text[:80]!r}, the last of them "
            "from nothing else: take it out of the prompts, or see in the log what it does to vLLM"
        )
        self.prompt, self.deaths = prompt, deaths


class Suspects:
    """Counts, for every request without an answer, the workers that died while they sampled it.

    A death has many causes and strikes many requests. Those that were there at two deaths are sampled alone from then
    on; a prompt that was there before, and is alone at another death, is deadly.
    """

    def __init__(self) -> None:
        self._deaths = Counter[PromptRequest]()

    def note_death(self, owed: Sequence[Collection[PromptRequest]]) -> DeadlyPrompt | None:
        """A worker died that owed these, stream by stream in the order in which it serves them.

        Returns the prompt that is to blame, if that is known now. It is not where the worker owed others, too, even in
        later streams: it may have died in one of those, and what it answered before be lost with it.
        """
        sampled = next(iter(owed), ())
        self._deaths.update(sampled)
        prompts = {request.prompt for requests in owed for request in requests}
        deaths = max((self._deaths[request] for request in sampled), default=0)
        return DeadlyPrompt(prompts.pop(), deaths) if len(prompts) == 1 and deaths > 1 else None

    def clear(self, request: PromptRequest) -> None:
        """It has an answer."""
        del self._deaths[request]

    def alone(self, request: PromptRequest) -> bool:
        """Whether it is to be sampled with nothing else."""
        return self._deaths.get(request, 0) >= ALONE_AFTER
