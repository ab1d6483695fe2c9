"""The weights of finished models, published from their folders: evaluation samples from several with one engine."""

from __future__ import annotations

from collections.abc import Iterator

import ray
from safetensors.torch import load_file
from torch import Tensor

from actors.recording import recorded
from actors.startup import Starting
from castor.model_reference import ModelLike, ModelReference
from engines.weights.base import WeightUpdate
from engines.weights.host import Sender


@ray.remote(num_cpus=0)
@recorded
class FolderWeights(Starting):
    """Publishes the weights of finished models. What it has published lives as long as this actor."""

    def publish(self, model: ModelLike, version: int) -> WeightUpdate | None:
        """The model's safetensors as `version`. Raises FileNotFoundError when there are none."""
        return Sender(keep=True).send(folder_tensors(model), version)


def folder_tensors(model: ModelLike) -> Iterator[tuple[str, Tensor]]:
    """All weights of a folder or hub id, which is fetched where this node lacks it. Raises FileNotFoundError."""
    files = sorted(ModelReference.of(model).local().glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model} holds no *.safetensors file")
    for file in files:
        yield from load_file(file).items()
