"""The prompt format of the run in whose folder a model lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from castor.io.errors import CastorError
from castor.run.files import RunFiles


def format_of_run(model: str) -> str | None:
    """The `template` of the run that left the model, also in a round; None for a model that lies in no run."""
    for folder in Path(model).absolute().parents[:2]:
        files = RunFiles(folder)
        if files.config.is_file() and files.records.is_file():
            config = yaml.safe_load(files.config.read_text(encoding="utf-8")) or {}
            return str(config.get("template", "auto"))
    return None


def format_of_runs(models: Iterable[str]) -> str | None:
    """The one format of the runs of several models; None where none lies in a run. Raises CastorError for two."""
    found = {}
    for model in models:
        form = format_of_run(model)
        if form is not None:
            # a tokenizer with a chat template reads both alike; one without, beside it, is not asked for one
            found["auto" if form == "chat" else form] = model
    if len(found) > 1:
        told = ", ".join(f"{form!r} ({model})" for form, model in found.items())
        raise CastorError(f"the models were trained with different prompt formats, {told}: assess them one by one")
    return next(iter(found), None)
