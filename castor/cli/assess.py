"""`castor assess`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from castor.cli.failures import failures_told
from castor.cli.run_format import format_of_runs
from castor.io.errors import CastorError

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="a YAML file, settings, or both, e.g. models.cost=runs/demo/cost data=rows.jsonl out=runs/assess",
    ),
]


def assess(arguments: Arguments) -> None:
    """Measure reward, cost and moderation models, or another system's predictions, on labelled rows: assess.json, and
    assess.html with the figures of trivial baselines and of the papers beside."""
    from castor.config.assess import Assess
    from castor.config.load import load_file, load_section
    from castor.io.terminal import captured

    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(files) > 1:
        raise CastorError(f"castor assess takes one config file, not {len(files)}: {', '.join(files)}")
    config = load_file(Assess, Path(files[0]), overrides) if files else load_section(Assess, {}, overrides)
    folders = [model for model in config.models.values() if isinstance(model, str)]
    if "template" not in config.model_fields_set and (form := format_of_runs(folders)) is not None:
        config = config.model_copy(update={"template": form})
    log = config.out / "assess.log"
    with captured(log) as terminal, failures_told(terminal, log):
        terminal.line(f"[bold]castor assess[/]  {config.out}  [dim]log: {log}[/]")
        from castor.evaluation.assess import assess as measure
        from castor.reports.assess_page import write_page
        from castor.reports.beaten import findings
        from castor.reports.table import assessment_table, baseline_tables

        assessment, scored = measure(config, terminal)
        write_page(config.out / "assess.html", assessment, scored)
        for finding in findings(assessment):
            colour = {"bad": "red", "mixed": "yellow", "good": "green"}[finding.tone]
            terminal.line(Text(finding.sentence, style=colour))
        terminal.line(assessment_table(assessment))
        for table in baseline_tables(assessment):
            terminal.line(table)
        terminal.line(f"{config.out / 'assess.html'}\n{config.out / 'assess.json'}")
