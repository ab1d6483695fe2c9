"""The weights of finished models, published from their folders: evaluation samples from several with one engine."""

from __future__ import annotations

import ray
from safetensors.torch import load_file

from castor.model_reference import ModelLike, ModelReference
from engines.weights.base import WeightUpdate
from engines.weights.host import Sender


@ray.remote(num_cpus=0)
class FolderWeights:
    """Publishes the weights of models in folders. What it has published lives as long as this actor."""

    def publish(self, model: ModelLike, version: int) -> WeightUpdate | None:
        """The model's safetensors as `version`. Raises FileNotFoundError when there are none."""
        files = sorted(ModelReference.of(model).local().glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{model} holds no *.safetensors file")
        return Sender(keep=True).send((pair for file in files for pair in load_file(file).items()), version)
