"""Frozen models: sequences of token ids in, finite numbers out, in micro-batches of a token budget.

Signals, collection, evaluation, assessment, moderation and serving ask their models through this file. It knows no Ray
and no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castor.config.judge import Classifier
from castor.dealing import micro_batches
from castor.experience import ragged_take
from castor.io.errors import CastorError
from castor.model_reference import ModelLike
from castor.packing import pack_rows

if TYPE_CHECKING:  # transformers takes seconds to import, which those who only want micro-batches need not spend
    from castor.models.classifier_cost import ClassifierCost
    from castor.models.moderation import ModerationModel
    from castor.models.prefixes import Prefixes
    from castor.models.score import ScoreInfo, ScoreModel

Progress = Callable[[int, int], None]  # sequences done, sequences in all
SHOWN = 200  # characters of a text that a message repeats


@torch.no_grad()
def in_micro_batches(
    lengths: NDArray[np.integer],
    budget: int,
    forward: Callable[[NDArray[np.int64]], Tensor],
    counts: NDArray[np.integer] | None = None,
    on: Progress | None = None,
) -> NDArray[np.float32]:
    """Run `forward` over N sequences in micro-batches of at most `budget` tokens, without gradients.

    Args:
        lengths: [N] tokens of each sequence; one longer than the budget has a micro-batch of its own.
        budget: tokens of one forward pass.
        forward: gets the indices [n] of a micro-batch's sequences; returns counts[i] outputs of each, one after the
            other: [sum of the counts, ...]. Without any sequence it is called once, with no indices.
        counts: [N] outputs of each sequence; None: one.
        on: told of the progress.

    Returns:
        [sum(counts), ...] float32 in the order of the sequences.

    """
    counts = np.ones(len(lengths), dtype=np.int64) if counts is None else counts
    (pieces,) = micro_batches(lengths, [range(len(lengths))], budget)
    outputs, order = [], []
    for piece in (np.asarray(piece, dtype=np.int64) for piece in pieces or [[]]):
        outputs.append(forward(piece).float().cpu().numpy())
        order.append(piece)
        if on is not None:
            on(sum(map(len, order)), len(lengths))
    done = np.concatenate(order)
    return ragged_take(np.concatenate(outputs), counts[done], np.argsort(done))


def require_finite(values: NDArray[np.floating], model: str, text: Callable[[int], str]) -> None:
    """Raise CastorError, naming model and text, unless all outputs [N, ...] are finite; output i is of `text(i)`."""
    finite = np.isfinite(values).all(tuple(range(1, values.ndim)))
    if not finite.all():
        first = int(np.argmin(finite))
        raise CastorError(
            f"{model} gives {int((~finite).sum())} of {len(values)} texts a number that is not finite (first: prompt "
            f"{text(first)[:SHOWN]!r}): its weights are damaged, or bfloat16 overflows; train it again, or set dtype: "
            "float32"
        )


@dataclass(frozen=True)
class FrozenModel:
    """A score, cost or moderation model that is only asked, at the last token of each sequence."""

    name: str  # in messages
    model: ScoreModel | ClassifierCost | ModerationModel
    device: torch.device
    batch_tokens: int  # of one forward pass
    pack_length: int | None = None  # longest packed row; None: the longest sequence of the pass

    @classmethod
    def load_scores(
        cls, model: ModelLike, dtype: str, batch_tokens: int, pack_length: int | None = None, *,
        classifier: Classifier | None = None, name: str | None = None,
    ) -> FrozenModel:  # fmt: skip
        """A score model, or with `classifier` the cost of a moderation model.

        It computes on the device of this process; `dtype` is auto, float32 or bfloat16. Raises CastorError when there
        is no such model, or it does not give this cost.
        """
        from castor.models.classifier_cost import ClassifierCost
        from castor.models.device import device, resolve_dtype
        from castor.models.load import load_score_model
        from castor.models.moderation import ModerationModel

        precision = resolve_dtype(dtype)
        loaded: ScoreModel | ClassifierCost
        if classifier is None:
            loaded = load_score_model(model, precision)
        else:
            loaded = ClassifierCost(ModerationModel.load(model, precision), classifier, str(model))
        return cls(name or str(model), loaded, device(), batch_tokens, pack_length).placed()

    @property
    def score_info(self) -> ScoreInfo:
        """What the scores of a score model mean. Raises TypeError for a moderation model."""
        from castor.models.score import ScoreInfo

        info = self.model.info
        if not isinstance(info, ScoreInfo):
            raise TypeError(f"{self.name} is a moderation model, which gives no scores")
        return info

    def placed(self) -> FrozenModel:
        """Itself, its weights frozen and on its device."""
        from castor.models.attention import place

        place(self.model.eval().requires_grad_(False), self.device)
        return self

    def move(self, onto_device: bool) -> None:
        """Its weights onto its device, or into the node's memory, where it cannot be asked."""
        self.model.to(self.device if onto_device else "cpu")

    def unchecked_outputs(
        self, sequences: Sequence[NDArray[np.integer]], on: Progress | None = None
    ) -> NDArray[np.float32]:
        """[N] scores, or [N, K] logits of a moderation model, of token sequences; some may not be finite."""
        lengths = np.array([len(tokens) for tokens in sequences], dtype=np.int64)

        def forward(chosen: NDArray[np.int64]) -> Tensor:
            tokens = np.concatenate([sequences[i] for i in chosen]) if len(chosen) else np.empty(0, dtype=np.int64)
            width = self.pack_length or int(lengths[chosen].max(initial=1))
            rows = pack_rows(tokens, lengths[chosen], width, masked=self.device.type == "cpu").to(self.device)
            last = torch.from_numpy(np.cumsum(lengths[chosen]) - 1).to(self.device)
            return self.model(rows, last)

        return in_micro_batches(lengths, self.batch_tokens, forward, on=on)

    def continued_outputs(
        self, sequences: Sequence[NDArray[np.integer]], names: Sequence[Hashable | None], read: Prefixes
    ) -> NDArray[np.float32]:
        """`unchecked_outputs` of N sequences, none empty, of which those with a name go on where that name was `read`.

        What is read of them now is kept there, within its room, a forward pass at a time.
        """
        from castor.models.prefixes import Continuation, unread

        def forward(chosen: NDArray[np.int64]) -> Tensor:
            part, called = [sequences[i] for i in chosen], [names[i] for i in chosen]
            kept = read.fitting(called, [len(tokens) for tokens in part])
            those = Continuation(part, [read.get(name) for name in called], kept)
            last = torch.from_numpy(np.cumsum(those.fresh) - 1).to(self.device)
            outputs = self.model(those.rows(self.device), last)
            for name, prefix in zip(called, those.after, strict=True):
                if prefix is not None:
                    read.put(name, prefix)
            return outputs

        fresh = np.array(unread(sequences, [read.get(name) for name in names]))
        return in_micro_batches(fresh, self.batch_tokens, forward)

    def prefixes(self, memory: int) -> Prefixes | None:
        """A place for what this model has read, of so many bytes; None where it cannot go on from there.

        It can if a sequence of which something was read before gives what it gives when all of it is read, which is
        found out by trying, and its packed rows go through a varlen kernel.
        """
        from castor.models.backbone import OF_THE_EFFECT
        from castor.models.prefixes import Prefixes

        part: Any = self.model
        part = getattr(part, "model", part)  # of a cost by a moderation model
        if part.packing not in ("varlen", "shared"):
            return None
        size = int(part.backbone.config.get_text_config().vocab_size)
        whole, counts = [np.arange(length) * 7 % size for length in (12, 5)], (8, 3)
        expected = self.unchecked_outputs(whole)
        forgotten = self.unchecked_outputs([tokens[count:] for tokens, count in zip(whole, counts, strict=True)])
        tried = Prefixes(sum(counts) + sum(map(len, whole)))
        self.continued_outputs([tokens[:count] for tokens, count in zip(whole, counts, strict=True)], (0, 1), tried)
        found = self.continued_outputs(whole, (0, 1), tried)
        error, effect = (float(np.linalg.norm(each - expected)) for each in (found, forgotten))
        first = tried.get(0)
        assert first is not None
        return Prefixes(memory // first.token_bytes) if error <= OF_THE_EFFECT * effect else None

    def outputs(
        self, sequences: Sequence[NDArray[np.integer]], text: Callable[[int], str], on: Progress | None = None
    ) -> NDArray[np.float32]:
        """`unchecked_outputs`, all finite. Raises CastorError as `require_finite`; sequence i answers `text(i)`."""
        values = self.unchecked_outputs(sequences, on)
        require_finite(values, self.name, text)
        return values
