"""`castor data`: look at a data set before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from castor.io.errors import CastorError
from castor.io.files import local_path, make_folder

if TYPE_CHECKING:
    from castor.config.data import DataSource
    from castor.data.inspect.check import SourceCheck
    from castor.data.inspect.leaks import PromptIndex
    from castor.data.sources.read import Kind

app = typer.Typer(no_args_is_help=True, help="Check, measure and split data sets.")

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="a file, folder, URL, named set, hub id, module:function or synthetic")
]
Split = Annotated[str, typer.Option("--split", help="synthetic, hub and saved folders: the split")]
Name = Annotated[str | None, typer.Option("--name", help="hub: the configuration of the data set")]
Revision = Annotated[str | None, typer.Option("--revision", help="hub: branch, tag or commit")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="only the first N good rows")]
Rows = Annotated[str, typer.Option("--rows", help="synthetic: make preference, qa, demonstration or prompt rows")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of what is random")]


@app.command()
def check(
    source: Source,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="a split (may be repeated: splits are compared with each other)")
    ] = None,
    name: Name = None,
    revision: Revision = None,
    limit: Limit = None,
    rows: Rows = "preference",
    strict: Annotated[bool, typer.Option("--strict", help="the first bad row is an error")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="SOURCE[@SPLIT]", help="look for its prompts here (may be repeated)"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="FOLDER", help="for the findings; default: runs/data-check/SOURCE"),
    ] = None,
) -> None:
    """What rows SOURCE has, which are bad and why, which are repeated, and which prompts other sets share.

    Exit code 0 when the source is usable, 2 when it is not.
    """
    from castor.data.inspect.check import (
        check_source,
        default_folder,
        index_prompts,
        source_name,
        write_check,
    )
    from castor.data.sources.report import require_usable
    from castor.io.terminal import Terminal

    kind, terminal = _kind(rows), Terminal()
    sources = [
        _source(source, split=one, name=name, revision=revision, limit=limit, strict=strict)
        for one in split or ["train"]
    ]
    if len({source_name(one) for one in sources}) < len(sources):
        raise CastorError(f"{source} is a file or was given one split twice, so its splits cannot be compared")
    earlier = [index_prompts(_other(text), kind) for text in against or []]
    for one in sources:
        found = check_source(one, kind, earlier)
        folder = (out / one.split if len(sources) > 1 else out) if out else default_folder(one)
        written = write_check(found, folder)
        _print_check(terminal, found, written)
        require_usable(found.report, found.name)
        earlier.append(found.prompts)


@app.command()
def stats(
    source: Source,
    out: Annotated[Path, typer.Option(parser=local_path, metavar="FILE", help="the HTML page to write")],
    json: Annotated[
        Path | None, typer.Option(parser=local_path, metavar="FILE", help="also write the numbers as JSON")
    ] = None,
    split: Split = "train",
    name: Name = None,
    revision: Revision = None,
    limit: Limit = None,
    rows: Rows = "preference",
    seed: Seed = 0,
) -> None:
    """One HTML page on what SOURCE holds: labels, categories, lengths, and whether its two preferences are related."""
    from castor.data.inspect.statistics import measure
    from castor.io.files import write_json
    from castor.io.terminal import Terminal
    from castor.reports.data_page import headline, warnings, write_data_page

    made = _source(source, split=split, name=name, revision=revision, limit=limit)
    for file in (out, json or out):
        make_folder(file.parent)
    statistics = measure(made, _kind(rows), seed)
    write_data_page(out, statistics)
    if json is not None:
        write_json(json, statistics.model_dump(mode="json"))
    terminal = Terminal()
    _say(terminal, statistics.source, f"{headline(statistics)}.", *warnings(statistics), f"page: {out}")


@app.command()
def split(
    source: Source,
    out: Annotated[Path, typer.Option(parser=local_path, metavar="FOLDER", help="for one .jsonl file a split")],
    shares: Annotated[
        float, typer.Option("--shares", metavar="SHARE SHARE [SHARE]...", help="of the rows; their sum is 1")
    ],
    more_shares: Annotated[list[float] | None, typer.Argument(hidden=True, metavar="[SHARE]...")] = None,
    split: Split = "train",
    name: Name = None,
    revision: Revision = None,
    limit: Limit = None,
    rows: Rows = "preference",
    seed: Seed = 0,
) -> None:
    """Split SOURCE by prompt: prompts that differ only in case, whitespace and punctuation stay together.

    Two shares give train and test, three train, validation and test.
    """
    from castor.config.data import DataSource
    from castor.data.inspect.check import check_source
    from castor.data.inspect.splitting import split_source
    from castor.io.terminal import Terminal

    made = _source(source, split=split, name=name, revision=revision, limit=limit)
    # An option takes one value, so the shares after the first arrive as arguments.
    written, report = split_source(made, out, [shares, *(more_shares or [])], seed, _kind(rows))
    report.write(out / "dropped.jsonl")
    terminal = Terminal()
    earlier: list[PromptIndex] = []
    _say(terminal, report.summary())
    for path, count in written.items():
        found = check_source(DataSource(source=str(path)), earlier=earlier)
        leaked = sum(leak.rows for leak in found.leaks)
        if leaked:
            raise RuntimeError(f"{path} shares the prompts of {leaked} rows with an earlier split")
        _say(terminal, f"{path}  {count:,} rows, {len(found.prompts.exact):,} prompts, {leaked} shared with the others")
        earlier.append(found.prompts)


def _kind(rows: str) -> Kind:
    from castor.data.sources.read import Kind

    if rows not in get_args(Kind):
        raise CastorError(f"--rows {rows} is no kind of rows; choose one of {', '.join(get_args(Kind))}")
    return rows  # type: ignore[return-value]  # one of the literals, as just checked


def _source(source: str, **options: Any) -> DataSource:
    from pydantic import ValidationError

    from castor.config.data import DataSource

    try:
        return DataSource(source=source, **options)
    except ValidationError as error:
        found = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise CastorError(f"{source}: {found}") from error


def _other(text: str) -> DataSource:
    """`SOURCE` or `SOURCE@SPLIT`; a file whose name has an @ is a file."""
    source, _, split = text.rpartition("@")
    if not source or "/" in split or Path(text).expanduser().exists():
        return _source(text)
    return _source(source, split=split)


def _print_check(terminal: Any, found: SourceCheck, written: list[Path]) -> None:
    from rich.table import Table
    from rich.text import Text

    counts = found.as_dict()
    # Text, not str: names of files and sets may hold square brackets, which rich would take for markup.
    table = Table(title=Text(found.name), title_justify="left", header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column("count", justify="right", overflow="fold")
    lines: list[tuple[str, int]] = [("read", counts["rows"]), ("kept", counts["kept"])]
    lines += [(f"  {kind}", n) for kind, n in counts["kinds"].items()]
    lines += [(f"dropped: {reason}", n) for reason, n in counts["dropped"].items()]
    lines += [(f"set aside: {reason}", n) for reason, n in counts["set_aside"].items()]
    lines += [(f"with {label}", n) for label, n in counts["labels"].items() if n]
    for label, values in counts["values"].items():
        lines += [(f"  {label} {value}", n) for value, n in values.items()]
    lines += [("different prompts", counts["prompts"]), ("  after normalising", counts["prompts_normalised"])]
    lines += [("duplicate rows", counts["duplicates"]), ("  after normalising", counts["duplicates_normalised"])]
    for leak in counts["leaks"]:
        lines += [(f"prompts shared with {leak['with']}", leak["exact"]), ("  after normalising", leak["normalised"])]
    for title, count in lines:
        table.add_row(Text(title), f"{count:,}")
    terminal.line(table)
    _say(terminal, *(f"warning: {warning}" for warning in (*found.warnings(), *found.report.notes)))
    _say(terminal, *(f"written: {path}" for path in written))


def _say(terminal: Any, *lines: str) -> None:
    from rich.text import Text

    for line in lines:
        terminal.line(Text(line))
