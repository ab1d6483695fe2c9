"""Score models (reward, cost) and critics: a linear head on any `AutoModel` backbone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from castor.checkpoint import atomic_folder
from castor.errors import CastorError
from castor.files import write_json
from castor.models.policy import check_loaded, first_line
from castor.packing import PackedRows

HEAD_FILE, SCORE_FILE = "score_head.safetensors", "castor_score.json"


@dataclass(frozen=True)
class ScoreInfo:
    """What a score means. A reward is normalised as (x - mean) / std; a cost only as x / std: its zero never moves."""

    score_type: Literal["reward", "cost"]
    mean: float = 0.0
    std: float = 1.0
    safe_mean: float | None = None  # costs: mean normalised score of held-out responses it calls safe (score <= 0)
    unsafe_mean: float | None = None  # ... and of those it calls unsafe

    def __post_init__(self) -> None:
        if self.score_type == "cost" and self.mean != 0.0:
            raise ValueError("a cost is never shifted: its normaliser has mean 0")
        if not self.std > 0:
            raise ValueError(f"the normaliser's std must be positive, not {self.std}")


class ScoreModel(nn.Module):
    """Backbone and head; returns a normalised score at any token."""

    def __init__(self, backbone: PreTrainedModel, info: ScoreInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.score_head = nn.Linear(backbone.config.hidden_size, 1, bias=True, dtype=backbone.dtype)
        nn.init.normal_(self.score_head.weight, std=1.0 / (backbone.config.hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.score_head.bias)
        self.info = info

    @classmethod
    def from_backbone(
        cls, model: str, info: ScoreInfo, dtype: torch.dtype, trust_remote_code: bool = False
    ) -> ScoreModel:
        """A fresh head on the backbone of a folder or hub id (a causal LM's head is left behind)."""
        return cls(_load_backbone(model, dtype, trust_remote_code), info)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> ScoreModel:
        """A score model that `save` wrote. Raises CastorError when the folder holds none."""
        folder = Path(folder)
        info = read_score_info(folder)
        model = cls(_load_backbone(str(folder), dtype, trust_remote_code=False), info)
        if not (folder / HEAD_FILE).is_file():
            raise CastorError(f"{folder} has no {HEAD_FILE}: the score model is not whole, train it again")
        model.score_head.load_state_dict({k: v.to(dtype) for k, v in load_file(folder / HEAD_FILE).items()})
        return model

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """[K] float32 normalised scores at the given flat token positions [K] int64."""
        output = self.backbone(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)
        raw = self.score_head(hidden[rows.flat[positions]]).squeeze(-1).float()
        if len(positions) == 0:  # an empty micro-batch still has to reach every parameter in the backward pass
            raw = raw + 0.0 * self.score_head(hidden).sum()
        return (raw - self.info.mean) / self.info.std


def save_score_model(
    folder: Path, config: PreTrainedModel, weights: dict[str, Tensor], info: ScoreInfo, tokenizer_from: str
) -> None:
    """Write a score model as a backbone folder plus a head file, whole or not at all.

    Args:
        folder: written aside and renamed.
        config: the backbone (only its class and config are used; under ZeRO-3 its own weights may be shards).
        weights: full weights by `ScoreModel` parameter name.
        info: what the score means.
        tokenizer_from: folder or hub id whose tokenizer is copied.

    """
    from safetensors.torch import save_file

    from castor.data.template import load_tokenizer

    prefix, head = "backbone.", "score_head."
    with atomic_folder(folder) as aside:
        backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        config.save_pretrained(aside, state_dict=backbone)
        save_file({k.removeprefix(head): v for k, v in weights.items() if k.startswith(head)}, aside / HEAD_FILE)
        write_json(aside / SCORE_FILE, asdict(info))
        load_tokenizer(tokenizer_from).save_pretrained(aside)


def read_score_info(folder: str | Path) -> ScoreInfo:
    """What the score model in `folder` measures. Raises CastorError when it holds none."""
    path = Path(folder) / SCORE_FILE
    try:
        return ScoreInfo(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CastorError(
            f"{folder} holds no score model ({SCORE_FILE} is missing): train one, or fix the path"
        ) from None
    except (TypeError, ValueError) as error:
        raise CastorError(f"{path} does not describe a score model: {first_line(error)}") from error


def _load_backbone(model: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        backbone, info = AutoModel.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CastorError(f"{model!r} cannot be loaded as a backbone: {first_line(error)}") from error
    check_loaded(model, info)
    backbone.config.use_cache = False
    return backbone
