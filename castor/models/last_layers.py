"""Training the last layers of a model only. Those before them, its embeddings and a vocabulary's head stay as they are.

A backward pass ends where what is frozen begins, and only what is trained has gradients and optimiser states.
"""

from __future__ import annotations

from torch import nn

from castor.io.errors import CastorError
from castor.models.backbone import decoder_layers
from castor.models.lora import inner_model


def train_last_layers(model: nn.Module, count: int) -> None:
    """Freeze a policy, a score model or a moderation model, in place, but for its last `count` layers, the norm behind
    them, and the heads of a score or moderation model. With 0 only heads are trained.

    Raises CastorError when the model has fewer layers or none that can be found, or when nothing would be trained.
    """
    _, inner = inner_model(model)
    name, found = inner.name_or_path, decoder_layers(inner)
    if found is None:
        raise CastorError(f"{name}: the layers of this architecture are not known: remove engine.trained_layers")
    parts, layers = found
    if count > len(layers):
        raise CastorError(f"{name} has {len(layers)} layers: lower engine.trained_layers, which is {count}")
    inner.requires_grad_(False)
    behind = parts[parts.index(layers) + 1 :] if count else []
    for part in (*layers[len(layers) - count :], *behind):
        part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CastorError("engine.trained_layers: 0 leaves nothing of a language model to train: give it 1 or more")
