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
    prompt twice. A prompt that is set aside is given no more. The whole stream follows from (prompts, batch_size, seed)
    and from what was set aside when; `state_dict` is JSON.

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
        self._aside = set[int]()
        self._begin_epoch(0, [], [])

    @property
    def epoch(self) -> int:
        """The epoch of the prompt last given, from 0."""
        return self._epoch

    @property
    def aside(self) -> dict[int, Prompt]:
        """The prompts that are given no more, by their index, in order."""
        return {index: self._prompts[index] for index in sorted(self._aside)}

    def set_aside(self, prompt: Prompt) -> int:
        """Give this one, which `next_batch` has given, no more; returns its index."""
        index = next(index for index, each in enumerate(self._prompts) if each is prompt)
        self._aside.add(index)
        return index

    def next_batch(self) -> list[tuple[int, Prompt]]:
        """The next `batch_size` prompts, each with its index in the sequence given at the start.

        Raises CastorError when too many are set aside.
        """
        if len(self._prompts) - len(self._aside) < self._batch_size:
            raise CastorError(
                f"a batch of {self._batch_size} prompts cannot be drawn from {len(self._prompts)}, of which "
                f"{len(self._aside)} are set aside; lower the batch size or give more prompts"
            )
        batch = self._take(self._batch_size)
        if len(batch) < self._batch_size:
            self._begin_epoch(self._epoch + 1, batch, sorted(self._aside))
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
            "absent": self._absent,
            "aside": sorted(self._aside),
            "prompts": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; what was set aside since then stays so.

        Raises CastorError when it belongs to other prompts, batch size or seed.
        """
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
        self._aside.update(state["aside"])
        self._begin_epoch(state["epoch"], state["held_back"], state["absent"])
        self._position = state["position"]

    def _take(self, count: int) -> list[int]:
        taken = list[int]()
        while len(taken) < count and self._position < len(self._order):
            index = self._order[self._position]
            self._position += 1
            if index not in self._aside:
                taken.append(index)
        return taken

    def _begin_epoch(self, epoch: int, held_back: list[int], absent: Sequence[int]) -> None:
        """Order an epoch. `held_back` began a batch in the last epoch: those prompts stay out of the rest of it.

        `absent` were set aside before. What is set aside later keeps its place in the order, and is passed over.
        """
        every = np.random.default_rng((self._seed, epoch)).permutation(len(self._prompts)).tolist()
        gone = set(absent)
        order = [index for index in every if index not in gone]
        if held_back:
            held = set(held_back)
            fresh = [index for index in order if index not in held][: self._batch_size - len(held)]
            leading = set(fresh)
            order = fresh + [index for index in order if index not in leading]
        self._epoch, self._position, self._held_back, self._order = epoch, 0, held_back, order
        self._absent = list(absent)
