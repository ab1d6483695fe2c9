"""The judges that decide in the tests what may leave: the same models, asked without any of the serving code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.models.score import ScoreModel
from castor.packing import pack_rows
from castor.scoring.moderator import Moderator


class JudgesOfRecord:
    """Cost, reward and moderation model of a run."""

    def __init__(self, run: Path, cost_limit: float) -> None:
        self.run, self.cost_limit = run, cost_limit
        self.models: dict[str, ScoreModel] = {}
        self._moderator: Moderator | None = None

    def costs(self, texts: Sequence[Exchange]) -> list[float]:
        return self.scores("cost", texts)

    def scores(self, kind: str, texts: Sequence[tuple[str, str] | Exchange]) -> list[float]:
        """Normalised scores, each text by itself."""
        if kind not in self.models:
            self.models[kind] = ScoreModel.load(self.run / kind, torch.float32).eval()
        template, scores = PromptTemplate(load_tokenizer(str(self.run / kind)), "pku"), []
        for text in (Exchange(*each) for each in texts):
            head = template.encode_prompt(text.prompt, text.history)
            tokens = np.array([*head, *template.encode_response(text.response)])
            with torch.inference_mode():
                rows = pack_rows(tokens, np.array([len(tokens)]), len(tokens))
                scores.append(float(self.models[kind](rows, torch.tensor([len(tokens) - 1]))))
        return scores

    @property
    def moderator(self) -> Moderator:
        self._moderator = self._moderator or Moderator(str(self.run / "qa"), "pku")
        return self._moderator

    def unsafe(self, texts: Sequence[Exchange]) -> list[bool]:
        """Whether one of the judges calls a whole answer unsafe."""
        costs, flags = self.costs(texts), self.moderator.predict(list(texts)).unsafe
        return [cost > self.cost_limit or bool(flag) for cost, flag in zip(costs, flags, strict=True)]
