"""Where rows come from."""

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section

SYNTHETIC = "synthetic"
SYNTHETIC_ROWS = 2000  # what the synthetic corpus makes when a source sets no limit
_FUNCTION = re.compile(r"(?!stage:)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(source: str) -> bool:
    """Whether a source is named `module:function`."""
    return _FUNCTION.fullmatch(source) is not None


class SyntheticOptions(Section):
    """The built-in corpus (castor/synthetic): harm and helpfulness of every text are known by construction."""

    seed: int = Field(0, description="seed of the generator; the same seed gives the same rows")
    label_noise: float = Field(0.07, ge=0, lt=0.5, description="share of flipped preference labels (both preferences)")
    safety_noise: float = Field(0.05, ge=0, lt=0.5, description="share of flipped is_safe labels")
    taxonomy: Literal["beavertails", "pku"] = Field(
        "beavertails",
        description="labels of QA rows: the 14 categories of BeaverTails, or PKU-SafeRLHF's 19 with a severity",
    )
    prompts: Literal["all", "harmless"] = Field(
        "all", description="harmless: demonstrations of everyday prompts only, as sets for SFT and PTX have them"
    )


class DataSource(Section):
    """One source of rows (docs/data.md): made up, a file, a folder, a data set of the hub, or a function of your own.

    `source` is `synthetic`; `stage:collect` for the rows that stage of the same run wrote; a .jsonl, .json, .parquet or
    .csv file (also .gz, .xz or .zst), by its path or by a URL such as s3://bucket/rows.jsonl; a folder written by
    `datasets`' save_to_disk; a data set of the papers by its name, such as `PKU-SafeRLHF`, read at a pinned revision;
    any other hub id; or `module:function`, called with this DataSource for an iterable of rows.

    Several sources in a list follow each other, unless they have weights: then rows are taken from each until the
    numbers of rows stand as the weights do (castor/data/rows/mixture.py).
    """

    source: str = Field(SYNTHETIC, description="synthetic, stage:NAME, a file or URL, a folder, a set's name or hub id")
    split: str = Field("train", description="synthetic: train, validation or test; hub, saved folder: the split's name")
    revision: str | None = Field(None, description="hub only: branch, tag or commit; default: the set's pinned one")
    name: str | None = Field(None, description="hub only: the configuration of the data set")
    limit: int | None = Field(None, ge=1, description="keep the first N good rows; the synthetic corpus makes N")
    proportion: float = Field(1.0, gt=0, le=1, description="share of the source's good rows to keep, drawn at random")
    weight: float | None = Field(
        None,
        gt=0,
        description="rows taken of this source, relative to the other sources' weights; all or none have one",
    )
    replacement: bool = Field(
        False, description="with a weight: repeat rows where the source has too few; else the other sources give fewer"
    )
    strict: bool = Field(False, description="a bad row is an error instead of being dropped and counted")
    helpfulness: Literal["longer"] | None = Field(
        None,
        description="QA rows have no helpfulness label. 'longer' states the stand-in: the longer response "
        "is the more helpful",
    )
    single_preference: Literal["harmless_first", "mixture"] | None = Field(
        None,
        description="rows labelled twice: replace better_response_id by one overall preference. harmless_first: the "
        "safer response where just one is safe, else the more helpful (PKU-SafeRLHF-single-dimension); mixture: of "
        "half of the rows the more helpful, of the others the less harmful (HH-RLHF's two halves together)",
    )
    synthetic: SyntheticOptions = Field(default_factory=SyntheticOptions, description="options of the synthetic corpus")

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> "DataSource":
        if self.source == SYNTHETIC and self.split not in ("train", "validation", "test"):
            raise ValueError(f"the synthetic corpus has the splits train, validation and test, not {self.split!r}")
        if self.source == SYNTHETIC and (self.revision or self.name):
            raise ValueError("revision and name belong to hub data sets, not to the synthetic corpus")
        if self.replacement and self.weight is None:
            raise ValueError("replacement repeats rows to reach a weight; give the source a weight, or leave it out")
        return self


def mixture_finding(sources: Sequence[DataSource]) -> str | None:
    """What to say of a list in which some sources have a weight and others have none; else None."""
    without = [source.source for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        return f"{without[0]} has no weight, but other sources beside it have: give all a weight, or none"
    return None
