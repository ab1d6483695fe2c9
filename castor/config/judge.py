"""Who judges a finished response: a score model, a moderation model, a function, or a remote scorer."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from castor.config.base import Section
from castor.config.data import is_function
from castor.config.model import ModelOption, source_of
from castor.config.template import PromptFormat
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, nearest_category

Measures = Literal["reward", "cost"]


class Classifier(Section):
    """A cost from a moderation model (BeaverTails table 2, PPOL-classifier). Zero is the threshold of its decision."""

    reduce: Literal["max", "mean", "expected_severity"] | list[str] = Field(
        "max",
        description="maximum or mean over the probabilities of all categories, the expected severity (0 to 3), or a "
        "list of categories: the largest excess of one of them over its own threshold",
    )
    margin: Literal["probability", "logit"] = Field(
        "probability", description="cost = probability - threshold, or the same difference of their log-odds"
    )

    @field_validator("reduce")
    @classmethod
    def _categories_exist(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            return value
        for name in value:
            if name not in (*BEAVERTAILS_CATEGORIES, *PKU_CATEGORIES):
                raise ValueError(
                    f"{name!r} is no harm category; the nearest one is {nearest_category(name, PKU_CATEGORIES)!r} in "
                    f"the taxonomy pku, {nearest_category(name, BEAVERTAILS_CATEGORIES)!r} in beavertails"
                )
        if not value:
            raise ValueError("an empty list of categories gives no cost: name at least one")
        return value


class HTTPScorer(Section):
    """A remote scorer: POSTs of prompts and responses (docs/signals.md), spoken by `castor serve`'s /v1/score."""

    HOW = frozenset(
        (
            "batch_size",
            "concurrency",
            "timeout_s",
            "retries",
            "retry_wait_s",
            "headers_env",
        )
    )

    url: str = Field(pattern=r"^https?://", description="where to POST, such as http://scores:8000/v1/score")
    field: str | None = Field(
        None, min_length=1, description="key of the number in each score; default: cost for constraints, reward else"
    )
    batch_size: int = Field(32, ge=1, description="responses of one request; castor serve takes up to 256")
    concurrency: int = Field(8, ge=1, description="requests of one actor under way at a time")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one reply")
    retries: int = Field(
        4, ge=0, description="further tries after a timeout, a lost connection, HTTP 429 or a server error (5xx)"
    )
    retry_wait_s: float = Field(
        0.5, ge=0, description="pause before the first retry; each further one is twice as long, up to 30 s"
    )
    headers_env: dict[str, str] = Field(
        default_factory=dict,
        description="request headers whose value is in an environment variable of the actor, e.g. "
        "{Authorization: SCORER_TOKEN}: a secret does not stand in a config",
    )


class Judge(Section):
    """Exactly one of: a score model (`model`), a moderation model (`model` with `classifier`), a Python function
    (`function`), a remote scorer (`http`)."""

    model: ModelOption | None = Field(
        None, description="score model (with classifier: moderation model): stage:NAME, a folder, or a hub id"
    )
    classifier: Classifier | None = Field(
        None, description="costs only: take the cost from a moderation model instead of a cost model"
    )
    template: PromptFormat | None = Field(
        None,
        description="with model: its own prompt format, in which prompt and response are encoded anew; default: the "
        "policy's tokens as they are, or (auto) the model's chat template where its tokenizer is another one",
    )
    function: str | None = Field(
        None,
        description="module:function, called with two lists of texts (prompts, responses) for one number a response; "
        "a module in the working directory is found. Of a cost, a number above zero means unsafe",
    )
    http: HTTPScorer | None = Field(None, description="a remote scorer")

    @model_validator(mode="after")
    def _one_judge(self) -> "Judge":
        judges = [name for name in ("model", "function", "http") if getattr(self, name) is not None]
        if len(judges) != 1:
            found = f"and has {' and '.join(judges)}" if judges else "and has none"
            raise ValueError(f"a judge has exactly one of model, function and http, {found}")
        for name in ("classifier", "template"):
            if getattr(self, name) is not None and self.model is None:
                raise ValueError(f"{name} belongs to a model, and the judge has {judges[0]} instead: remove {name}")
        if self.function is not None and not is_function(self.function):
            raise ValueError(f"function {self.function!r} is not of the form module:function, such as my_scores:score")
        return self

    @property
    def source(self) -> str:
        """What judges, in words."""
        if self.model is not None:
            return f"{'moderation' if self.classifier else 'score'} model {source_of(self.model)}"
        return f"function {self.function}" if self.function is not None else f"scorer {self._http.url}"

    def gives(self, other: "Judge") -> bool:
        """Whether it gives the numbers of `other`, computed this way or that, where both measure the same."""
        return all(_recipe(getattr(self, name)) == _recipe(getattr(other, name)) for name in Judge.model_fields)

    @property
    def _http(self) -> HTTPScorer:
        assert self.http is not None  # `_one_judge`
        return self.http


def _recipe(value: object) -> object:
    return value.recipe() if isinstance(value, Section) else value
