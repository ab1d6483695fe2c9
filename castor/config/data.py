"""Where rows come from."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section

SYNTHETIC = "synthetic"


class SyntheticOptions(Section):
    """The built-in corpus (castor/data/synthetic): harm and helpfulness of every text are known by construction."""

    seed: int = Field(0, description="seed of the generator; the same seed gives the same rows")
    label_noise: float = Field(0.07, ge=0, lt=0.5, description="share of flipped preference labels (both preferences)")
    safety_noise: float = Field(0.05, ge=0, lt=0.5, description="share of flipped is_safe labels")


class DataSource(Section):
    """One source of rows: the synthetic corpus, local files, or a data set of the hub.

    `source` is `synthetic`; a path to a .jsonl, .json or .parquet file (also .gz or .xz); `stage:collect` for the rows
    that stage of the same run wrote; or a hub id such as `PKU-Alignment/PKU-SafeRLHF`.
    """

    source: str = Field(SYNTHETIC, description="synthetic, stage:NAME, a file, or a hub id")
    split: str = Field("train", description="synthetic: train, validation or test; hub: the split's name")
    revision: str | None = Field(None, description="hub only: branch, tag or commit")
    name: str | None = Field(None, description="hub only: the configuration of the data set")
    limit: int | None = Field(None, ge=1, description="keep the first N good rows; the synthetic corpus makes N")
    strict: bool = Field(False, description="a bad row is an error instead of being dropped and counted")
    helpfulness: Literal["longer"] | None = Field(
        None,
        description="QA rows have no helpfulness label. 'longer' states the stand-in: the longer response "
        "is the more helpful",
    )
    synthetic: SyntheticOptions = Field(default_factory=SyntheticOptions, description="options of the synthetic corpus")

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> "DataSource":
        if self.source == SYNTHETIC and self.split not in ("train", "validation", "test"):
            raise ValueError(f"the synthetic corpus has the splits train, validation and test, not {self.split!r}")
        if self.source == SYNTHETIC and (self.revision or self.name):
            raise ValueError("revision and name belong to hub data sets, not to the synthetic corpus")
        return self
