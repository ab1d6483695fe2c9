"""What can be wrong with a judge before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from castor.io.user_function import function_finding

if TYPE_CHECKING:
    from castor.config.judge import Judge


def judge_findings(place: str, judge: Judge) -> Iterator[str]:
    """A function that does not fit; categories that a moderation model in a local folder does not have."""
    finding = judge.function and function_finding(judge.function, ["prompts", "responses"])
    if finding:
        yield f"{place}.function: {finding}"
    yield from _category_findings(place, judge)


def _category_findings(place: str, judge: Judge) -> Iterator[str]:
    """Categories that a moderation model in a local folder does not have."""
    if judge.classifier is None or isinstance(judge.classifier.reduce, str) or judge.model is None:
        return
    from castor.config.model import source_of
    from castor.models.head_kind import TAXONOMIES, head_kind
    from castor.taxonomy import nearest_category

    folder = Path(source_of(judge.model))
    categories = TAXONOMIES.get(head_kind(str(folder))) if folder.is_dir() else None  # type: ignore[arg-type]
    for name in judge.classifier.reduce if categories else ():
        if categories is not None and name not in categories:
            near = nearest_category(name, categories)
            yield f"{place}.classifier.reduce: {folder} has no category {name!r}; the nearest one is {near!r}"
