"""Training sources that hold prompts of the closing evaluation, found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from castor.config.data import SYNTHETIC, DataSource
from castor.config.model import stage_of
from castor.data.inspect.leaks import Leak, PromptIndex, prompt_digest
from castor.data.rows.load import stream_demonstrations, stream_preferences, stream_prompts, stream_qa
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.sources.report import RowReport
from castor.evaluation.summary import SharedPrompts
from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from castor.io.terminal import Terminal
from castor.run.plan import Plan
from castor.run.stages.stage import Rows

Stream = Callable[[DataSource, RowReport], Iterator[str] | Iterator[QARow] | Iterator[PreferenceRow]]
STREAMS: dict[Rows, Stream] = {
    "demonstrations": stream_demonstrations,
    "preferences": stream_preferences,
    "qa": stream_qa,
    "prompts": stream_prompts,
}


def training_sources(plan: Plan) -> Iterator[tuple[str, DataSource, Stream]]:
    """Every source something is trained on: its key in the config, and how its rows are read.

    Rows another stage writes are among them, by their `stage:NAME`: they answer the prompts of that stage.
    """
    for stage in plan.stages.values():
        if stage.trains_on_rows:
            for read in stage.rows():
                yield f"{stage.place}.{read.key}", read.source, STREAMS[read.rows]


def report_leaks(plan: Plan, terminal: Terminal) -> list[SharedPrompts]:
    """Tell of every training source that shares prompts with `evaluate.prompts`; keep it for the report, and return it.

    A prompt counts as shared if it differs in no more than case, whitespace and punctuation. Raises CastorError instead
    where evaluate.prompts is strict, and for a source that cannot be read.
    """
    evaluated = plan.of_kind("evaluate")
    if not evaluated:
        return []
    held_out: DataSource = evaluated[0].section.prompts
    if stage_of(held_out.source) is not None:
        return []
    found = find_leaks(plan, held_out)
    if found and held_out.strict:
        raise CastorError("\n".join(f"{_told(leak)}; take them out, or set strict: false there" for leak in found))
    for leak in found:
        terminal.line(f"  [yellow]leak[/] {_told(leak)}, so the evaluation looks better than it is")
    write_json(
        plan.files.leaks, {"prompts": held_out.model_dump_json(), "found": [leak.model_dump() for leak in found]}
    )
    return found


def find_leaks(plan: Plan, held_out: DataSource) -> list[SharedPrompts]:
    """What each training source shares with the held-out prompts; those that share nothing are left out."""
    index = PromptIndex("evaluate.prompts")
    for prompt in stream_prompts(held_out, RowReport()):
        index.add((prompt,), index.name)
    found = []
    for keys, source, stream in _distinct(plan):
        if stage_of(source.source) is not None or _disjoint(source, held_out):
            continue
        leak = Leak(", ".join(keys), index.name)
        for prompt in _prompts(stream(source, RowReport())):
            leak.look((prompt,), source.source, index)
        if leak.rows:
            shared = SharedPrompts(source=leak.name, prompts=_shared(leak), of=len(index.normalised), times=leak.rows)
            found.append(shared)
    return found


def read_leaks(plan: Plan) -> list[SharedPrompts] | None:
    """What `report_leaks` has found for the prompts that are evaluated now; None where it has not looked at these."""
    if not plan.files.leaks.is_file():
        return None
    looked = read_json(plan.files.leaks)
    if looked["prompts"] != plan.of_kind("evaluate")[0].section.prompts.model_dump_json():
        return None
    return [SharedPrompts(**each) for each in looked["found"]]


def _told(leak: SharedPrompts) -> str:
    return f"{leak.source} holds {leak.prompts:,} of the {leak.of:,} prompts of evaluate.prompts ({leak.times:,} times)"


def _shared(leak: Leak) -> int:
    """Evaluation prompts that are shared; the source may write one of them in several ways."""
    return len({prompt_digest((shared["prompt"],)) for shared in leak.prompts})


def _distinct(plan: Plan) -> Iterator[tuple[list[str], DataSource, Stream]]:
    """The training sources; one that stands at several keys is read once."""
    keys: dict[tuple[str, Stream], list[str]] = {}
    sources: dict[tuple[str, Stream], DataSource] = {}
    for key, source, stream in training_sources(plan):
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
