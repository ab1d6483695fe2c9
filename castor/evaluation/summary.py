"""summary.json: the result of a pipeline run in numbers. The models below are its schema (docs/summary.md explains it).

`python -m castor.evaluation.summary > docs/summary.schema.json` writes the JSON Schema anew after a change.
"""

import itertools
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from castor.evaluation.limits import Constraint, Statistic
from castor.evaluation.metrics import PolicyMetrics
from castor.evaluation.schema import Part, json_schema_text
from castor.io.errors import CastorError
from castor.io.files import write_text


class Versions(Part):
    """Versions of the software that produced the run, as each package states its own."""

    castor: str
    python: str
    torch: str
    vllm: str
    ray: str
    deepspeed: str
    transformers: str


class Stage(Part):
    """Time of one pipeline stage."""

    seconds: float = Field(ge=0, description="Wall seconds the stage took when it was last carried out.")
    reused: bool = Field(description="True when this pipeline run took the stage's earlier result instead.")


class RowCounts(Part):
    """What became of the rows that a stage read."""

    read: int = Field(ge=0, description="Rows of its sources, up to their limits.")
    dropped: int = Field(ge=0, description="Bad ones among them, listed beside the stage.")
    set_aside: int = Field(ge=0, description="Good ones among them that are of no use to the stage.")
    too_long: int = Field(ge=0, description="Prompts, or samples of training, left out for their length.")


class SharedPrompts(Part):
    """Held-out prompts that a training source holds as well; case, whitespace and punctuation aside."""

    source: str = Field(description="Where in the config the source stands; several places are told with commas.")
    prompts: int = Field(ge=1, description="Held-out prompts that are shared.")
    of: int = Field(ge=1, description="Held-out prompts there are.")
    times: int = Field(ge=1, description="Rows of the source that hold them.")


class Throughput(Part):
    """Speed of one RLHF run."""

    rollout_tokens_per_s: float = Field(ge=0, description="Tokens sampled per wall second of rollout.")
    learner_tokens_per_s: float = Field(ge=0, description="Tokens trained on per wall second of learning.")


class Step(Part):
    """One step of an RLHF run; means are over the step's responses."""

    step: int = Field(ge=0, description="Number of the step.")
    multipliers: dict[str, float] = Field(
        default_factory=dict, description="Multiplier of every constraint by name, as used in this step's loss."
    )
    mean_costs: dict[str, float] = Field(default_factory=dict, description="Mean cost of every constraint by name.")
    weighted_reward: float = Field(description="What the step raised: the weighted sum of its objectives' mean scores.")
    kl: float = Field(description="Mean KL estimate from the reference policy, in nats per response.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Any other metric of the step by name.")


class RunLimit(Part):
    """What a constraint of a run keeps under which limit."""

    statistic: Statistic = Field(description="mean: of the cost. share: of unsafe responses, cost above 0.")
    limit: float = Field(description="In cost units, or a share from 0 to 1.")
    confidence: float | None = Field(
        None, description="Of the upper bound that is kept under the limit; null: none is."
    )


class Run(Part):
    """An RLHF run, step by step."""

    limits: dict[str, RunLimit] = Field(
        default_factory=dict, description="What each constraint keeps under which limit, by name; empty without one."
    )
    objectives: dict[str, float] = Field(
        default_factory=dict, description="Weight of every objective by name; their scores are in the steps' metrics."
    )
    monitors: list[str] = Field(default_factory=list, description="Signals that were only watched.")
    alarms: dict[str, str] = Field(
        default_factory=dict, description="What was still wrong at the run's end, by the alarm's name, in words."
    )
    steps: list[Step] = Field(description="The steps in order.")

    @model_validator(mode="after")
    def _steps_ascend(self) -> Self:
        numbers = [step.step for step in self.steps]
        if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            raise ValueError("steps must be in ascending order, each once")
        return self


class Summary(Part):
    """The result of a pipeline run: where it came from, how long it took, how training went, what the policies do."""

    constraints: list[Constraint] = Field(
        default_factory=list, description="Every constraint of every run: its limit, and whether it was kept."
    )
    schema_version: Literal[4] = Field(default=4, description="Version of this format.")
    created: AwareDatetime = Field(description="When the summary was written, ISO 8601 with a UTC offset.")
    seed: int = Field(description="Seed of the run.")
    versions: Versions
    stages: dict[str, Stage] = Field(description="Pipeline stages by name, in the order they were run.")
    rows: dict[str, RowCounts] = Field(
        default_factory=dict, description="What became of the rows of each stage that reads some, by its name."
    )
    throughput: dict[str, Throughput] = Field(description="Speed of the RLHF runs by name.")
    leaks: list[SharedPrompts] | None = Field(
        default=None, description="Held-out prompts that were trained on, by source; null: nobody has looked."
    )
    runs: dict[str, Run] = Field(description="RLHF runs by name, such as ppo_lag and ppo.")
    policies: dict[str, PolicyMetrics] = Field(
        min_length=1, description="Evaluated policies by name, such as sft, ppo and ppo_lag; the starting point first."
    )


def write_summary(path: str | Path, summary: Summary) -> None:
    """Write `summary` as indented JSON, whole or not at all."""
    write_text(path, summary.model_dump_json(indent=2, by_alias=True) + "\n")


def read_summary(path: str | Path) -> Summary:
    """Read and check a summary.json. Raises CastorError naming the first field that is wrong."""
    try:
        return Summary.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CastorError(
            f"{path} is no summary of this version ({field}: {first['msg']}); run the evaluation stage again"
        ) from error


def schema_text() -> str:
    """The JSON Schema of summary.json as committed at docs/summary.schema.json."""
    return json_schema_text(Summary, "Castor summary.json")


if __name__ == "__main__":
    print(schema_text(), end="")
