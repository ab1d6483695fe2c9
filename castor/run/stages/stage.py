"""What a stage is: all of its facts but the work itself, which its runner does."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from castor.run.actors import Actors
from castor.run.files import StageFiles

if TYPE_CHECKING:  # the command line imports stages to name its commands; sections cost a quarter of a second
    from castor.config.base import Section
    from castor.config.data import DataSource
    from castor.config.judge import Judge
    from castor.config.model import ModelOption
    from castor.config.rollout import Rollout
    from castor.models.head_kind import HeadKind

Kind = Literal["language model", "reward model", "cost model", "moderation model", "rows", "report"]
Rows = Literal["demonstrations", "qa", "preferences", "prompts"]
LANGUAGE_MODEL: frozenset[Kind] = frozenset({"language model"})
ANY_MODEL: frozenset[Kind] = frozenset({"language model", "reward model", "cost model", "moderation model"})
ROWS: frozenset[Kind] = frozenset({"rows"})


@dataclass(frozen=True)
class Read:
    """One thing a stage reads: at `key` of its section stands `reference`, which must be one of `kinds`."""

    key: str
    reference: ModelOption
    kinds: frozenset[Kind]


@dataclass(frozen=True)
class RowsRead:
    """Rows a stage reads, from `source` at `key` of its section, as `rows` of that kind."""

    key: str
    source: DataSource
    rows: Rows


class Stage(ABC):
    """One stage of a run. Every kind is a class in a file of this folder; a stage of a config is an object of it."""

    field: ClassVar[str]  # of the config, which holds a section of this kind, or several by name
    makes: ClassVar[Kind]
    summary: ClassVar[str]  # of its command; empty: it runs as part of the pipeline only
    runner: ClassVar[str]  # module:function, called with a `trainers.stage_run.StageRun`; returns a line about it
    can_resume: ClassVar[bool] = True  # whether its command takes --fresh

    section: Any  # its section, of a class of its own in every kind

    def __init__(self, name: str, place: str, section: Section) -> None:
        """`name` is that of its folder (`sft`, `round-2/reward`), `place` that of its section (`sft`, `rlhf.ppo`)."""
        self.name, self.place, self.section = name, place, section

    @abstractmethod
    def models(self) -> Iterator[Read]:
        """The models it reads."""

    def rows(self) -> Sequence[RowsRead]:
        """The sources of rows it reads."""
        return ()

    def reads(self) -> list[Read]:
        """Everything it reads."""
        return [*self.models(), *(Read(f"{each.key}.source", each.source.source, ROWS) for each in self.rows())]

    @property
    def trains_on_rows(self) -> bool:
        """Whether rows it reads reach what the run makes, so that none of them may be an evaluation prompt."""
        return True

    def starts_from(self) -> ModelOption | None:
        """What the model that it makes was made from; None for a model out of nothing, and for no model."""
        return None

    def recipe(self) -> dict[str, Any]:
        """What of its section decides its result, as JSON values; a change of anything else reruns nothing."""
        recipe: dict[str, Any] = self.section.recipe()
        return recipe

    def actors(self) -> list[Actors]:
        """The actors it starts; none: it runs in the driver."""
        return []

    def actor(self, name: str) -> Actors:
        """Those of one name. Raises LookupError when it starts none."""
        return next((each for each in self.actors() if each.name == name), None) or _missing(self.name, name)

    @property
    def rollout(self) -> Rollout | None:
        """How it samples from the models it reads; None: it does not."""
        return None

    @property
    def steps(self) -> int | None:
        """The updates that it takes; None where it takes none, or their number follows from its rows."""
        return None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence it gives to the models it reads; None: it gives them none."""
        rollout = self.rollout
        return None if rollout is None else rollout.max_prompt_tokens + rollout.max_new_tokens

    @property
    def head(self) -> HeadKind | None:
        """What the head measures of the model that it makes; None: it makes a language model, or none."""
        return None

    def judges(self) -> Iterator[tuple[str, Judge]]:
        """Whoever judges responses in it, by place in the config."""
        return iter(())

    def findings(self) -> Iterator[str]:
        """What is wrong with its section that the section alone cannot see, a line each."""
        return iter(())

    @property
    def makes_model(self) -> bool:
        """Whether it leaves a model."""
        return self.makes in ANY_MODEL

    def model_folder(self, files: StageFiles) -> Path:
        """Where among its files the model lies that it makes."""
        return files.folder

    @property
    def command(self) -> str:
        """The command, after `castor`, that runs this stage alone."""
        if not self.summary or "/" in self.name:
            return "pipeline CONFIG"
        return f"{self.field} CONFIG" if self.name == self.field else f"{self.field} CONFIG --run {self.name}"

    def load_runner(self) -> Callable[[Any], str]:
        """The runner. Here torch, Ray, vLLM and DeepSpeed are imported: a run with nothing to do needs none of them."""
        module, _, function = self.runner.partition(":")
        runner: Callable[[Any], str] = getattr(importlib.import_module(module), function)
        return runner


def data_rows(sources: Sequence[DataSource], rows: Rows) -> list[RowsRead]:
    """The sources of a list named `data`."""
    return [
        RowsRead(f"data.{number}" if len(sources) > 1 else "data", source, rows)
        for number, source in enumerate(sources)
    ]


def most_rows(source: DataSource) -> int | None:
    """The most rows a source can give; None where that is not known before it is read."""
    from castor.config.data import SYNTHETIC, SYNTHETIC_ROWS

    limit = SYNTHETIC_ROWS if source.limit is None and source.source == SYNTHETIC else source.limit
    return None if limit is None else math.ceil(limit * source.proportion)


def helper(name: str, work: str) -> Actors:
    """An actor that reserves nothing and holds no model."""
    return Actors(name, 1, None, work)


def _missing(stage: str, name: str) -> Actors:
    raise LookupError(f"{stage} starts no actors named {name!r}")
