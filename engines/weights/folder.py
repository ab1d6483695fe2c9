"""Weights from a model's folder, which all nodes see: every vLLM worker reads the files itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from castor.io.errors import CastorError
from engines.weights import base
from engines.weights.base import WeightUpdate
from engines.weights.digest import Digest, Tensors

TRANSPORT = "folder"


class Receiver(base.Receiver):
    """A piece is the path of a safetensors file."""

    def pieces(self, update: WeightUpdate, in_process: bool) -> Iterator[Any]:
        """The files, one after the other."""
        yield from update.pieces

    def receive(self, piece: Any, load: Callable[[Tensors], None]) -> None:
        """Read a file."""
        load(_tensors(Path(piece)))


def folder_update(folder: Path, version: int) -> WeightUpdate:
    """The weights in a folder, announced as `version`: their digest is taken from the files here.

    Raises CastorError for a folder without safetensors.
    """
    files = sorted(folder.absolute().glob("*.safetensors"))
    if not files:
        raise CastorError(f"{folder} holds no weights (*.safetensors): give the folder of a model")
    digest = Digest()
    for file in files:
        for _ in digest.adding(_tensors(file)):
            pass
    return WeightUpdate(version, digest.over(None), TRANSPORT, [str(file) for file in files])


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a folder's safetensors."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})  # noqa: SIM118
    return found


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    with safe_open(file, framework="pt") as opened:
        for name in sorted(opened.keys()):
            yield name, opened.get_tensor(name)
