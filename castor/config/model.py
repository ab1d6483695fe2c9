"""Which model: the value of every option that names one."""

from pydantic import Field

from castor.config.base import FolderOrName, Section

STAGE = "stage:"


class Model(Section):
    """A model with its revision and with trust in its code; without these an option gives its name alone."""

    HOW = frozenset({"trust_remote_code"})

    source: FolderOrName = Field(description="stage:NAME, a folder, or a hub id")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit; default: its newest")
    trust_remote_code: bool = Field(
        False, description="run the code that the model ships; also for what other stages make of it"
    )


ModelOption = FolderOrName | Model


def source_of(model: ModelOption) -> str:
    """The name alone: stage:NAME, a folder, or a hub id."""
    return model if isinstance(model, str) else model.source


def stage_of(reference: str) -> str | None:
    """NAME of stage:NAME; None for anything else."""
    return reference.removeprefix(STAGE) if reference.startswith(STAGE) else None
