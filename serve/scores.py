"""The score models on Ray Serve: `POST /v1/score`. Whatever goes wrong is an HTTP error, never a number."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from serve.replicas import TooLongError, deployment_options

if TYPE_CHECKING:  # the driver deploys without importing torch and transformers
    import numpy as np
    from numpy.typing import NDArray

MAX_ITEMS, MAX_CHARACTERS = 256, 1_000_000
MAX_BATCH, BATCH_WAIT_S = 64, 0.01

logger = logging.getLogger("ray.serve")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Response = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Text = Annotated[Response, AfterValidator(_not_blank)]


class ScoreItem(BaseModel):
    """A prompt and a finished response to it, which may be empty: a policy can end its answer at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text
    response: Response


class ScoreRequest(BaseModel):
    """One item as `prompt` and `response`, or several as `items`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text | None = None
    response: Response | None = None
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


class ScoreServer:
    """One replica: the cost model, and the reward model where there is one."""

    def __init__(self, name: str, folders: dict[str, Path], config: Serve) -> None:
        import torch

        from serve.scorer import Scorer

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
            try:
                encoded = [
                    [scorer.encode(i.prompt, i.response) for scorer in self.scorers] for i in request.all_items()
                ]
            except TooLongError as error:
                raise HTTPException(400, str(error)) from None
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
