"""assess.json: what was measured of reward, cost and moderation models. The models below are its schema.

docs/assess.md explains it. `python -m castor.evaluation.assessment > docs/assess.schema.json` writes the JSON Schema
anew after a change.
"""

from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from castor.evaluation.anchors import Anchor
from castor.evaluation.schema import Part, json_schema_text
from castor.io.files import write_text
from castor.statistics.agreement import Agreement
from castor.statistics.bootstrap import Measure
from castor.statistics.calibration import Bin

ModelKind = Literal["reward", "cost", "moderation"]
SetName = Literal["data", "out_of_distribution"]
ALWAYS_UNSAFE, NO_LABELS, MAJORITY = "always unsafe", "no labels", "majority of each label"  # names of baselines
LENGTH, PAIR = "answer length", "TF-IDF, question and answer"
Figures = dict[str, Measure | None]


class DataSet(Part):
    """The rows that models were measured on."""

    source: str = Field(description="Source as the config names it.")
    split: str | None = Field(description="Split of a hub data set or of the synthetic corpus; null for local files.")
    rows: int = Field(ge=0, description="Responses with a safety label; 0 when no model asks for one.")
    pairs: int = Field(ge=0, description="Pairs of responses; 0 when no model asks for one.")
    prompts: int = Field(ge=1, description="Different prompts.")
    unsafe_share: float | None = Field(description="Share of the rows labelled unsafe.")
    dropped: dict[str, int] = Field(description="Bad rows left out, by reason.")
    fitted: str = Field(description="What the baselines learnt from to judge these rows, in words.")


class Label(Part):
    """One harm category of a moderation model."""

    positives: int = Field(ge=0, description="Rows in the category.")
    f1: Measure | None = Field(description="F1; null when the category neither occurs nor is predicted.")


class ModelOnSet(Part):
    """One model on one data set. Every figure is null where it does not exist."""

    too_long: int = Field(ge=0, description="Texts left out because they are longer than max_length or the context.")
    overall: Figures = Field(description="Figures over all rows or pairs, by name.")
    by_category: dict[str, Figures] = Field(
        description="Figures by harm category of the rows as labelled; all rows of a category are unsafe, so that its "
        "accuracy is the share of them that was found. `safe` holds the rows in no category. A pair belongs to the "
        "categories of both responses."
    )
    by_severity: dict[str, Figures] = Field(description="The same by severity; a pair has that of its worse response.")
    by_label: dict[str, Label] = Field(description="Moderation models: F1 of each of the model's categories.")
    labels_mapped: bool = Field(
        description="True when the data's categories were translated to the model's taxonomy, which widens them: "
        "exact match then says little."
    )
    reliability: list[Bin] = Field(description="Probability of being unsafe against how often that was so.")


class Model(Part):
    """A model and its figures by data set."""

    kind: ModelKind
    folder: str = Field(
        description="Its folder or hub id; of another system the file or function that gave its answers."
    )
    sets: dict[SetName, ModelOnSet]


class Baseline(Part):
    """An answer that needs no model, or a linear one, and its figures by data set: what a model has to beat."""

    name: str
    of: Literal["safety", "helpfulness"] = Field(description="What it tells; helpfulness: to set beside reward models.")
    categories: int = Field(ge=0, description="Categories of its labels: 14 or 19; 0 of a baseline of helpfulness.")
    sets: dict[SetName, ModelOnSet]


class JudgeRun(Part):
    """How a judge fared on one question of one data set."""

    judge: str
    data: SetName
    question: str
    verdicts: int = Field(ge=0, description="Items it gave a verdict on.")
    ties: int = Field(ge=0, description="Pairs it judged equal, or one way round only.")
    failures: dict[str, int] = Field(description="Items it failed on, by reason.")


class Assessment(Part):
    """What was measured of some models, and what the papers report of theirs."""

    schema_version: Literal[2] = Field(default=2, description="Version of this format.")
    created: AwareDatetime = Field(description="When it was measured, ISO 8601 with a UTC offset.")
    seed: int
    versions: dict[str, str] = Field(description="Versions of castor, python, torch and transformers.")
    data: dict[SetName, DataSet]
    models: dict[str, Model] = Field(min_length=1, description="Models by the name the config gives them.")
    baselines: list[Baseline] = Field(description="What the models have to beat, measured alike.")
    agreement: dict[SetName, list[Agreement]] = Field(description="Every two judges on each question, by data set.")
    judges: list[JudgeRun] = Field(description="Judges that were asked: the keyword lists and language models.")
    anchors: list[Anchor] = Field(description="Figures of the papers, for comparison.")


def write_assessment(path: str | Path, assessment: Assessment) -> None:
    """Write `assessment` as indented JSON, whole or not at all."""
    write_text(path, assessment.model_dump_json(indent=2) + "\n")


def schema_text() -> str:
    """The JSON Schema of assess.json as committed at docs/assess.schema.json."""
    return json_schema_text(Assessment, "Castor assess.json")


if __name__ == "__main__":
    print(schema_text(), end="")
