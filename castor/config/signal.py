"""A signal: what judges a finished response, which limit a constraint keeps, and how its critic is trained."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from castor.config.base import Section
from castor.config.data import is_function
from castor.config.model import ModelOption, source_of
from castor.config.multipliers import Constraint, Multipliers
from castor.config.template import PromptFormat
from castor.config.training import Engine, Optimizer, Resources
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, nearest_category


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
        known = (*BEAVERTAILS_CATEGORIES, *PKU_CATEGORIES)
        for name in value:
            if name not in known:
                near = nearest_category(name, known)
                raise ValueError(f"{name!r} is no harm category; the nearest one is {near!r}")
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


class Signal(Section):
    """One judge of a finished response, and a critic that predicts its return.

    The judge is exactly one of: a score model (`model`), a moderation model (`model` with `classifier`), a Python
    function (`function`), a remote scorer (`http`).
    """

    HOW = frozenset(
        (
            "ranks",
            "resources",
        )
    )

    role: Literal["objective", "constraint", "monitor"] = Field(
        description="maximise it, keep its mean at or under a limit, or only watch it: a monitor, of which more is "
        "better, is logged, and shows whether the policy pleases its judges alone (alarms.hacking_errors)"
    )
    model: ModelOption | None = Field(
        None, description="score model (with classifier: moderation model): stage:NAME, a folder, or a hub id"
    )
    classifier: Classifier | None = Field(
        None, description="constraints only: take the cost from a moderation model instead of a cost model"
    )
    template: PromptFormat | None = Field(
        None,
        description="with model: its own prompt format, in which prompt and response are encoded anew; default: the "
        "policy's tokens as they are, or (auto) the model's chat template where its tokenizer is another one",
    )
    function: str | None = Field(
        None,
        description="module:function, called with two lists of texts (prompts, responses) for one number a response; "
        "a module in the working directory is found. Of a constraint, a number above zero means unsafe",
    )
    http: HTTPScorer | None = Field(None, description="a remote scorer")
    weight: float = Field(1.0, gt=0, description="objectives only: weight in the sum of objectives")
    threshold: float | None = Field(None, description="constraints only: mean cost must stay at or under it (-d)")
    unsafe_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="constraints only, instead of threshold: the mean cost of a policy with this share of unsafe "
        "responses, safe_mean + share * (unsafe_mean - safe_mean), with the means stored in the cost model's folder; "
        "with constraint.statistic share the limit of the share itself",
    )
    constraint: Constraint = Field(default_factory=Constraint, description="constraints only: what must keep the limit")
    multiplier: Multipliers | None = Field(
        None, description="constraints only: a rule of its own, in place of the run's multipliers as a whole"
    )
    critic: Engine | None = Field(
        default_factory=lambda: Engine(optimizer=Optimizer(lr=5e-6, lr_scheduler_type="constant")),
        description="how the critic is trained; its batch sizes and type also hold for scoring. Only estimator gae "
        "makes critics; null: none",
    )
    critic_model: ModelOption | None = Field(
        None,
        description="what the critic starts from, with a fresh scalar head: stage:NAME, a folder, or a hub id, with "
        "the policy's tokenizer. Default: the score model, or the backbone of the moderation model",
    )
    ranks: int = Field(
        1, ge=1, description="actors in the group; they share the scoring, and are the critic's world size"
    )
    resources: Resources = Field(default_factory=Resources, description="of one actor of the group")

    @model_validator(mode="after")
    def _one_judge(self) -> "Signal":
        judges = [name for name in ("model", "function", "http") if getattr(self, name) is not None]
        if len(judges) != 1:
            found = f"and has {' and '.join(judges)}" if judges else "and has none"
            raise ValueError(f"a signal has exactly one of model, function and http, {found}")
        for name in ("classifier", "template"):
            if getattr(self, name) is not None and self.model is None:
                raise ValueError(f"{name} belongs to a model, and the signal has {judges[0]} instead: remove {name}")
        if self.function is not None and not is_function(self.function):
            raise ValueError(f"function {self.function!r} is not of the form module:function, such as my_scores:score")
        return self

    @model_validator(mode="after")
    def _role_and_limits_agree(self) -> "Signal":
        limits = [name for name in ("threshold", "unsafe_share") if getattr(self, name) is not None]
        if self.role != "constraint":
            foreign = [*limits, *(["constraint"] if self.constraint != Constraint() else [])]
            foreign += ["multiplier"] if self.multiplier is not None else []
            if foreign:
                article = "an" if self.role == "objective" else "a"
                raise ValueError(
                    f"{article} {self.role} has no {foreign[0]}: remove it, or make the signal a constraint"
                )
        if self.role == "monitor" and self.weight != 1.0:
            raise ValueError("a monitor has no weight: nothing is learned from it")
        if self.role == "constraint" and len(limits) != 1:
            raise ValueError("a constraint needs exactly one limit: threshold or unsafe_share")
        by_share = self.constraint.statistic == "share"
        if by_share and self.threshold is not None:
            raise ValueError("a share of unsafe responses is limited by unsafe_share: give it instead of threshold")
        if self.classifier is not None and self.threshold is None and not (self.unsafe_share and by_share):
            raise ValueError(
                "classifier gives a cost whose limit is a threshold, or an unsafe_share with constraint.statistic "
                "share: make it a constraint with one of them"
            )
        if self.model is None and self.unsafe_share is not None and not by_share:
            raise ValueError(
                f"{self.source} does not say the mean cost of safe and of unsafe responses, so unsafe_share has no "
                "threshold: state threshold instead, or limit the share itself with constraint.statistic share"
            )
        if self.role == "constraint" and self.weight != 1.0:
            raise ValueError("a constraint has no weight: its multiplier is its price")
        return self

    @property
    def scoring(self) -> Engine:
        """How the frozen model is asked: with the type and batch sizes under `critic`, or else the defaults."""
        return self.critic or Engine()

    @property
    def known_limit(self) -> float | None:
        """The limit of a constraint in the unit of its statistic; None: it follows from the cost model."""
        by_share = self.constraint.statistic == "share"
        return self.unsafe_share if by_share else self.threshold

    @property
    def source(self) -> str:
        """What judges, in words."""
        if self.model is not None:
            return f"{'moderation' if self.classifier else 'score'} model {source_of(self.model)}"
        return f"function {self.function}" if self.function is not None else f"scorer {self._http.url}"

    @property
    def critic_start(self) -> ModelOption | None:
        """What a critic would start from; None: the config names nothing that could be."""
        return self.critic_model or self.model

    @property
    def _http(self) -> HTTPScorer:
        assert self.http is not None  # `_one_judge`
        return self.http
