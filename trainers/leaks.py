"""Training sources that hold prompts of the closing evaluation, found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from castor.config.collect import Collect
from castor.config.data import SYNTHETIC, DataSource
from castor.config.dpo import DPO
from castor.config.moderation import Moderation
from castor.config.pipeline import Config
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF
from castor.config.supervised import SFT, Supervised
from castor.data.inspect.leaks import Leak, PromptIndex, prompt_digest
from castor.data.rows.load import stream_demonstrations, stream_preferences, stream_prompts, stream_qa
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.sources.read import STAGE
from castor.data.sources.report import RowReport
from castor.io.errors import CastorError
from castor.io.terminal import Terminal
from castor.run.check import section_key, stage_sections

Stream = Callable[[DataSource, RowReport, Path | None], Iterator[str] | Iterator[QARow] | Iterator[PreferenceRow]]


def training_sources(config: Config) -> Iterator[tuple[str, DataSource, Stream]]:
    """Every source something is trained on: its key in the config, and how its rows are read.

    Rows another stage writes are left out: they answer the prompts of that stage, which are here.
    """
    for name, section in stage_sections(config).items():
        key = section_key(config, name)
        if isinstance(section, Supervised):
            for number, source in enumerate(section.data):
                yield f"{key}.data.{number}" if len(section.data) > 1 else f"{key}.data", source, _stream(section)
        elif isinstance(section, Collect):
            yield f"{key}.prompts", section.prompts, stream_prompts
        elif isinstance(section, RLHF):
            yield f"{key}.prompts", section.prompts, stream_prompts
            if section.learner.ptx is not None:
                yield f"{key}.learner.ptx.data", section.learner.ptx.data, stream_demonstrations


def _stream(stage: Supervised) -> Stream:
    """How the rows of a supervised stage are read."""
    if isinstance(stage, SFT):
        return stream_demonstrations
    if isinstance(stage, Moderation) or (isinstance(stage, Cost) and stage.loss == "sign"):
        return stream_qa
    if isinstance(stage, Reward | Cost | DPO):
        return stream_preferences
    raise TypeError(f"the rows of a section of type {type(stage).__name__} are read in no known way")


def report_leaks(config: Config, terminal: Terminal) -> list[Leak]:
    """Tell of every training source that shares prompts with `evaluate.prompts`, and return what is shared.

    A prompt counts as shared if it differs in no more than case, whitespace and punctuation. Raises CastorError instead
    where evaluate.prompts is strict, and for a source that cannot be read.
    """
    if config.evaluate is None:
        return []
    held_out = config.evaluate.prompts
    if held_out.source.startswith(STAGE):
        return []
    index = PromptIndex("evaluate.prompts")
    for prompt in stream_prompts(held_out, RowReport(), None):
        index.add((prompt,), index.name)
    leaks = []
    for keys, source, stream in _distinct(config):
        if source.source.startswith(STAGE) or _disjoint(source, held_out):
            continue
        leak = Leak(", ".join(keys), index.name)
        for prompt in _prompts(stream(source, RowReport(), None)):
            leak.look((prompt,), source.source, index)
        if leak.rows:
            leaks.append(leak)
    findings = [
        f"{leak.name} holds {_shared(leak):,} of the {len(index.normalised):,} prompts of evaluate.prompts"
        f" ({leak.rows:,} times)"
        for leak in leaks
    ]
    if findings and held_out.strict:
        raise CastorError("\n".join(f"{finding}; take them out, or set strict: false there" for finding in findings))
    for finding in findings:
        terminal.line(f"  [yellow]leak[/] {finding}, so the evaluation looks better than it is")
    return leaks


def _shared(leak: Leak) -> int:
    """Evaluation prompts that are shared; the source may write one of them in several ways."""
    return len({prompt_digest((shared["prompt"],)) for shared in leak.prompts})


def _distinct(config: Config) -> Iterator[tuple[list[str], DataSource, Stream]]:
    """The training sources; one that stands at several keys is read once."""
    keys: dict[tuple[str, Stream], list[str]] = {}
    sources: dict[tuple[str, Stream], DataSource] = {}
    for key, source, stream in training_sources(config):
        same = source.model_dump_json(exclude={"weight"}), stream  # a weight changes no row, and rounds share it
        keys.setdefault(same, []).append(key)
        sources[same] = source
    for same, source in sources.items():
        yield keys[same], source, same[1]


def _disjoint(source: DataSource, held_out: DataSource) -> bool:
    """The splits of the synthetic corpus share no prompt by construction."""
    return source.source == held_out.source == SYNTHETIC and source.split != held_out.split


def _prompts(rows: Iterator[str] | Iterator[QARow] | Iterator[PreferenceRow]) -> Iterator[str]:
    """Everything a user says in the rows: an earlier turn that is a held-out prompt gives its answer away as well."""
    for row in rows:
        if isinstance(row, str):
            yield row
        else:
            yield from chain((user for user, _ in row.history), (row.prompt,))
