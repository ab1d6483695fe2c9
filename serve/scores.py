"""The score models on Ray Serve: `POST /v1/score`. Whatever goes wrong is an HTTP error, never a number."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from castor.data.template import PromptTemplate, load_tokenizer
from castor.models.policy import context_length
from castor.models.score import ScoreModel
from castor.packing import micro_batches, pack_rows
from serve.replicas import deployment_options

MAX_ITEMS, MAX_CHARACTERS = 256, 1_000_000
MAX_BATCH, BATCH_WAIT_S = 64, 0.01

logger = logging.getLogger("ray.serve")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_not_blank)]


class ScoreItem(BaseModel):
    """A prompt and a finished response to it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text
    response: Text


class ScoreRequest(BaseModel):
    """One item as `prompt` and `response`, or several as `items`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text | None = None
    response: Text | None = None
    items: list[ScoreItem] | None = Field(None, min_length=1, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        one = self.prompt is not None and self.response is not None
        some = self.prompt is not None or self.response is not None
        if one == (self.items is not None) or (some and not one):
            raise ValueError("give either prompt and response, or items")
        return self

    def all_items(self) -> list[ScoreItem]:
        """The items, whichever form they came in."""
        if self.items is not None:
            return self.items
        assert self.prompt is not None
        assert self.response is not None
        return [ScoreItem(prompt=self.prompt, response=self.response)]


class Score(BaseModel):
    """Normalised end scores of one item. `unsafe` is cost > 0; `reward` is null where the run has no reward model."""

    cost: float
    reward: float | None
    unsafe: bool


class ScoreResponse(BaseModel):
    """Scores in the order of the items."""

    model: str
    scores: list[Score]


@dataclass(frozen=True)
class Scorer:
    """A score model with its tokenizer. Texts are formatted as in training: prompt, response, end-of-text token."""

    kind: str
    model: ScoreModel
    template: PromptTemplate
    context: int | None
    budget: int

    @classmethod
    def load(cls, kind: str, folder: Path, config: Serve) -> Scorer:
        """From the folder of a finished stage, on this process's device."""
        from actors.deepspeed_engine import device, resolve_dtype

        model = ScoreModel.load(folder, resolve_dtype(config.dtype)).eval().requires_grad_(False).to(device())
        if model.info.score_type != kind:
            raise ValueError(f"{folder} holds a {model.info.score_type} model, not a {kind} model")
        template = PromptTemplate(load_tokenizer(str(folder)), config.template)
        return cls(kind, model, template, context_length(str(folder)), config.score_batch_tokens)

    def encode(self, item: ScoreItem) -> NDArray[np.int64]:
        """Token ids. Raises HTTPException 400 when they are more than the model's context."""
        tokens = [*self.template.encode_prompt(item.prompt), *self.template.encode_response(item.response)]
        if self.context is not None and len(tokens) > self.context:
            raise HTTPException(
                400,
                f"prompt and response have {len(tokens)} tokens, more than the {self.kind} model's context of "
                f"{self.context}: shorten them",
            )
        return np.array(tokens, dtype=np.int64)

    @torch.inference_mode()
    def score(self, sequences: Sequence[NDArray[np.int64]]) -> list[float]:
        """The normalised score at the last token of each sequence."""
        lengths = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
        scores = np.empty(len(sequences), dtype=np.float64)
        where = next(self.model.parameters()).device
        (pieces,) = micro_batches(lengths, [range(len(lengths))], self.budget)
        for piece in pieces:
            rows = pack_rows(np.concatenate([sequences[i] for i in piece]), lengths[piece], int(lengths[piece].max()))
            last = torch.from_numpy(np.cumsum(lengths[piece]) - 1)
            scores[piece] = self.model(rows.to(where), last.to(where)).double().cpu().numpy()
        return scores.tolist()


class ScoreServer:
    """One replica: the cost model, and the reward model where there is one."""

    def __init__(self, name: str, folders: dict[str, Path], config: Serve) -> None:
        torch.set_num_threads(config.score_resources.threads)
        self.name = name
        self.scorers = [Scorer.load(kind, folder, config) for kind, folder in folders.items()]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes. Called by Serve once the models are loaded."""
        app = FastAPI(title="Castor scores", description="Cost > 0 means unsafe.")

        @app.exception_handler(RequestValidationError)
        async def invalid(_: Any, error: RequestValidationError) -> JSONResponse:
            # the input is not repeated: it may hold what no JSON answer can, such as half of a surrogate pair
            detail = [{key: found[key] for key in ("type", "loc", "msg")} for found in error.errors()]
            return JSONResponse({"detail": detail}, 422)

        @app.post("")  # relative to the application's route prefix, /v1/score
        async def score(request: ScoreRequest) -> ScoreResponse:
            encoded = [[scorer.encode(item) for scorer in self.scorers] for item in request.all_items()]
            rows = await asyncio.gather(*(self.score_batch(sequences) for sequences in encoded))
            return ScoreResponse(model=self.name, scores=[self._checked(row) for row in rows])

        return app

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score_batch(self, encoded: list[list[NDArray[np.int64]]]) -> list[list[float]]:
        """Items of all requests that wait, as token ids per score model -> scores per score model."""
        per_model = await asyncio.to_thread(
            lambda: [scorer.score([item[i] for item in encoded]) for i, scorer in enumerate(self.scorers)]
        )
        return [list(scores) for scores in zip(*per_model, strict=True)]

    def _checked(self, row: list[float]) -> Score:
        values = {scorer.kind: value for scorer, value in zip(self.scorers, row, strict=True)}
        if not all(math.isfinite(value) for value in values.values()):
            logger.error("a score model returned %s", values)
            raise HTTPException(500, "a score model returned no finite number for this text")
        return Score(cost=values["cost"], reward=values.get("reward"), unsafe=values["cost"] > 0)


def scores_app(name: str, cost: Path, reward: Path | None, config: Serve) -> Application:
    """The Serve application that scores with the models in the given folders, under the model name `name`."""
    folders = {"cost": cost} if reward is None else {"cost": cost, "reward": reward}
    options = deployment_options("scores", config.score_replicas, config.score_resources)
    deployment = serve.deployment(max_ongoing_requests=config.max_ongoing_requests, **options)
    return deployment(serve.ingress()(ScoreServer)).bind(name, folders, config)
