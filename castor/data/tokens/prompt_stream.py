"""An endless, reshuffled, resumable stream of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castor.io.errors import CastorError
from castor.io.files import fingerprint


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt to be answered: its text, and the token ids [length] that the policy reads."""

    text: str
    ids: NDArray[np.int32]


class PromptStream:
    """Batches of prompts, epoch after epoch, each epoch in an order of its own.

    An epoch gives every prompt exactly once. A batch may begin in one epoch and end in the next, and never holds a
    prompt twice. The whole stream follows from (prompts, batch_size, seed); `state_dict` is JSON.

    Raises CastorError when a batch is larger than the number of prompts.
    """

    def __init__(self, prompts: Sequence[Prompt], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise CastorError(f"a batch of prompts needs at least one prompt, not {batch_size}; raise the batch size")
        if batch_size > len(prompts):
            raise CastorError(
                f"a batch of {batch_size} prompts cannot be drawn from {len(prompts)} prompts without repeats;"
                " lower the batch size or give more prompts"
            )
        self._prompts = list(prompts)
        self._batch_size = batch_size
        self._seed = seed
        self._fingerprint = fingerprint([prompt.text for prompt in self._prompts])
        self._begin_epoch(0, [])

    @property
    def epoch(self) -> int:
        """The epoch of the prompt last given, from 0."""
        return self._epoch

    def next_batch(self) -> list[tuple[int, Prompt]]:
        """The next `batch_size` prompts, each with its index in the sequence given at the start."""
        batch = self._take(self._batch_size)
        if len(batch) < self._batch_size:
            self._begin_epoch(self._epoch + 1, batch)
            batch = batch + self._take(self._batch_size - len(batch))
        return [(index, self._prompts[index]) for index in batch]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in JSON types."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "held_back": list(self._held_back),
            "prompts": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises CastorError when it belongs to other prompts, batch size or seed."""
        for key, mine, what in (
            ("prompts", self._fingerprint, "the prompts"),
            ("seed", self._seed, "the seed"),
            ("batch_size", self._batch_size, "the batch size"),
        ):
            if state[key] != mine:
                raise CastorError(
                    f"{what} of the prompt stream changed since the checkpoint ({state[key]} then, {mine} now);"
                    " restore them, or start a new run"
                )
        self._begin_epoch(state["epoch"], state["held_back"])
        self._position = state["position"]

    def _take(self, count: int) -> list[int]:
        taken = self._order[self._position : self._position + count]
        self._position += len(taken)
        return taken

    def _begin_epoch(self, epoch: int, held_back: list[int]) -> None:
        """Order an epoch. `held_back` began a batch in the last epoch: those prompts stay out of the rest of it."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._prompts)).tolist()
        if held_back:
            held = set(held_back)
            fresh = [index for index in order if index not in held][: self._batch_size - len(held)]
            leading = set(fresh)
            order = fresh + [index for index in order if index not in leading]
        self._epoch, self._position, self._held_back, self._order = epoch, 0, held_back, order
