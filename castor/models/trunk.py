"""Hidden states below the last layers of a model, taken from another one that has computed them.

A critic of which the last layers are trained (`castor.models.last_layers`) is its judge below them, and the judge reads
every response before it: the critic goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from castor.models.backbone import Packing, decoder_layers, model_inputs
from castor.models.called_instead import called_instead
from castor.packing import PackedRows

TOLERANCE = 1e-3  # of the largest hidden value; states that do not come through are off by far more
MOST = 1 << 30  # bytes that are kept at most; of what has no room the critic computes everything


class Trunk:
    """What is below the last `trained` layers, of each text by its tokens, for at most `steps` steps."""

    def __init__(self, trained: int, steps: int = 1) -> None:
        self.trained, self.steps = trained, steps
        self.step = self.used = self.bytes = 0
        self._states: dict[bytes, tuple[int, Tensor]] = {}  # the step in which they came, and [n, H]

    @contextmanager
    def note(self, backbone: Any, rows: PackedRows) -> Iterator[None]:
        """Keep what the backbone computes of these rows while the body runs it."""
        with _seen(backbone, self.trained) as seen:
            yield
        states = seen[0].detach().flatten(0, 1)[rows.flat]
        names, lengths = _texts(rows)
        for name, part in zip(names, states.split(lengths), strict=True):
            self._forget(name)
            if self.bytes + part.nbytes <= MOST:
                self._states[name] = self.step, part.clone()  # a part of the batch's would keep all of them in memory
                self.bytes += part.nbytes

    @contextmanager
    def use(self, backbone: Any, rows: PackedRows) -> Iterator[None]:
        """While the body runs it on these rows, the backbone goes on from what is kept, if that is all of them."""
        names, _ = _texts(rows)
        if not names or not all(name in self._states for name in names):
            yield
            return
        self.used += 1
        with _given(backbone, self.trained, rows, torch.cat([self._states[name][1] for name in names])):
            yield

    def end_step(self) -> None:
        """Forget what is as old as allowed."""
        self.step += 1
        for name in [name for name, (step, _) in self._states.items() if self.step - step >= self.steps]:
            self._forget(name)

    def _forget(self, name: bytes) -> None:
        if name in self._states:
            self.bytes -= self._states.pop(name)[1].nbytes


@torch.no_grad()
def goes_on(backbone: Any, packing: Packing, trained: int) -> bool:
    """Whether a model can be given what is below its last `trained` layers, and gives what it gives by itself.

    Found out by trying. One that adds positions to its embeddings does not.
    """
    found = decoder_layers(backbone)
    if found is None or not 1 <= trained < len(found[1]):  # a last layer alone may have computed some tokens only
        return False
    device, size = backbone.device, int(backbone.config.get_text_config().vocab_size)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]], device=device)
    ids = torch.arange(positions.numel(), device=device).view(positions.shape) % size
    rows, inputs = model_inputs(PackedRows(ids, positions, torch.arange(ids.numel(), device=device)), packing)
    training = backbone.training
    backbone.eval()
    try:
        with _seen(backbone, trained) as seen:
            before = backbone(**inputs).last_hidden_state.float()
        if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].shape != before.shape:
            return False
        with _given(backbone, trained, rows, seen[0].flatten(0, 1)[rows.flat]):
            after = backbone(**inputs).last_hidden_state.float()
    finally:
        backbone.train(training)
    return bool((after - before).abs().max() <= TOLERANCE * before.abs().max())


@contextmanager
def _seen(backbone: Any, trained: int) -> Iterator[list[Any]]:
    """What the layer below the last `trained` ones hands on, in a list that has it when the body has run them."""
    seen: list[Any] = []
    layer = _below(backbone, trained)[-1]
    hook = layer.register_forward_hook(lambda _, given, made: seen.append(made))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _given(backbone: Any, trained: int, rows: PackedRows, states: Tensor) -> Iterator[None]:
    """While the body runs, states [T, H] of the tokens come in the place of embeddings, and lower layers pass them on.

    So the layers above get them as their input, which a checkpointed layer asks for once more in the backward pass.
    """
    grid = states.new_zeros(rows.input_ids.numel(), states.shape[-1])
    grid[rows.flat] = states
    grid = grid.view(*rows.input_ids.shape, -1)
    with ExitStack() as stack:
        stack.enter_context(called_instead(backbone.get_input_embeddings(), lambda _: grid))
        for layer in _below(backbone, trained):
            stack.enter_context(called_instead(layer, lambda hidden, *_, **__: hidden))
        yield


def _below(backbone: Any, trained: int) -> Any:
    found = decoder_layers(backbone)
    assert found is not None  # as `goes_on` has seen
    return found[1][: len(found[1]) - trained]


def _texts(rows: PackedRows) -> tuple[list[bytes], list[int]]:
    """The tokens of each sequence, as a name, and their number."""
    tokens, places = (part.view(-1)[rows.flat].cpu().numpy() for part in (rows.input_ids, rows.position_ids))
    parts = np.split(tokens, np.flatnonzero(places == 0)[1:]) if len(tokens) else []
    return [part.tobytes() for part in parts], [len(part) for part in parts]
