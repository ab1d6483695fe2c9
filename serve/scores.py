"""The score models on Ray Serve: `POST /v1/score`. Whatever goes wrong is an HTTP error, never a number."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from serve.replicas import deployment_options
from serve.targets import Targets

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


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant"]
    content: Response


class ScoreItem(BaseModel):
    """A prompt and a finished response to it, which may be empty: a policy can end its answer at once.

    Or a whole conversation as `messages`, of user and assistant in turn, which ends with the response.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text | None = None
    response: Response | None = None
    messages: list[Message] | None = Field(None, min_length=2, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        if self._is_pair == (self.messages is not None):
            raise ValueError("give either prompt and response, or messages")
        return self

    @model_validator(mode="after")
    def _turns_alternate(self) -> ScoreItem:
        messages = self.messages or []
        if len(messages) % 2 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(messages)):
            raise ValueError("messages must be of user and assistant in turn, and end with the assistant's response")
        if any(m.role == "user" and not m.content.strip() for m in messages):
            raise ValueError("a user's message must not be blank")
        return self

    @property
    def _is_pair(self) -> bool:
        """Whether it is given as prompt and response. Raises ValueError when one of them is missing."""
        if (self.prompt is None) != (self.response is None):
            raise ValueError("give either prompt and response, or items, or messages")
        return self.prompt is not None

    def conversation(self) -> Exchange:
        """The texts to judge."""
        if self.messages is None:
            assert self.prompt is not None
            assert self.response is not None
            return Exchange(self.prompt, self.response)
        texts = [message.content for message in self.messages]
        *history, (prompt, response) = zip(texts[::2], texts[1::2], strict=True)
        return Exchange(prompt, response, tuple(history))


class ScoreRequest(ScoreItem):
    """One item, or several as `items`."""

    items: list[ScoreItem] | None = Field(None, min_length=1, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        if sum([self._is_pair, self.messages is not None, self.items is not None]) != 1:
            raise ValueError("give either prompt and response, or items, or messages")
        return self

    def texts(self) -> list[Exchange]:
        """The texts to judge, whichever form they came in."""
        return [item.conversation() for item in self.items or [self]]


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

    def __init__(self, name: str, targets: Targets, config: Serve) -> None:
        import torch

        from serve.scorer import load_scorer

        torch.set_num_threads(config.score_resources.threads)
        self.name = name
        judges, template = targets.judges, targets.template
        self.models = {kind: load_scorer(kind, judge, template, config) for kind, judge in judges.items()}

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
            from castor.scoring.text_model import TooLongError

            texts = request.texts()
            try:
                encoded = [[model.encode(text) for model in self.models.values()] for text in texts]
            except TooLongError as error:
                raise HTTPException(400, str(error)) from None
            rows = await asyncio.gather(*(self.score_batch(sequences) for sequences in encoded))
            scores = [self._checked(row, text) for row, text in zip(rows, texts, strict=True)]
            return ScoreResponse(model=self.name, scores=scores)

        return app

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score_batch(self, encoded: list[list[NDArray[np.int64]]]) -> list[list[float]]:
        """Items of all requests that wait, as token ids per score model -> scores per score model."""
        per_model = await asyncio.to_thread(
            lambda: [
                model.frozen.unchecked_outputs([item[i] for item in encoded]).tolist()
                for i, model in enumerate(self.models.values())
            ]
        )
        return [list(scores) for scores in zip(*per_model, strict=True)]

    def _checked(self, row: list[float], text: Exchange) -> Score:
        """The scores of one text. Checked here: a text whose score is not finite must not fail others of its batch."""
        import numpy as np

        from castor.scoring.frozen import require_finite

        values = dict(zip(self.models, row, strict=True))
        try:
            for kind, value in values.items():
                require_finite(np.array([value]), f"the {kind} model", lambda _: text.prompt)
        except CastorError as error:
            logger.error("%s", error)
            raise HTTPException(500, "a score model returned no finite number for this text") from None
        return Score(cost=values["cost"], reward=values.get("reward"), unsafe=values["cost"] > 0)


def scores_app(name: str, targets: Targets, config: Serve) -> Application:
    """The Serve application that scores with the models of a run, under the model name `name`."""
    options = deployment_options("scores", config.score_replicas, config.score_resources)
    deployment = serve.deployment(max_ongoing_requests=config.max_ongoing_requests, **options)
    return deployment(serve.ingress()(ScoreServer)).bind(name, targets, config)
