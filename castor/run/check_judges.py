"""What can be wrong with a judge before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from castor.config.model import source_of, stage_of
from castor.io.user_function import function_finding
from castor.models.head_kind import TAXONOMIES, head_kind
from castor.taxonomy import nearest_category

if TYPE_CHECKING:
    from castor.config.judge import Judge
    from castor.run.stages.stage import Stage


def judge_findings(place: str, judge: Judge, stages: Mapping[str, Stage]) -> Iterator[str]:
    """A function that does not fit; categories that a moderation model lacks, of one of the stages or in a folder."""
    finding = judge.function and function_finding(judge.function, ["prompts", "responses"])
    if finding:
        yield f"{place}.function: {finding}"
    if judge.classifier is None or isinstance(judge.classifier.reduce, str) or judge.model is None:
        return
    source = source_of(judge.model)
    for name in judge.classifier.reduce if (categories := _categories(source, stages)) else ():
        if name not in categories:
            near = nearest_category(name, categories)
            yield f"{place}.classifier.reduce: {source} has no category {name!r}; the nearest one is {near!r}"


def _categories(source: str, stages: Mapping[str, Stage]) -> tuple[str, ...]:
    """Those of a moderation model; none: it is another model, or not on this machine."""
    stage = stages.get(stage_of(source) or "")
    head = stage.head if stage else head_kind(source) if Path(source).is_dir() else None
    return next((categories for taxonomy, categories in TAXONOMIES.items() if taxonomy == head), ())
