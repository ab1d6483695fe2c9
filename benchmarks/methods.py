"""The methods at equal steps: `python -m benchmarks.methods --seeds 0 1 2` runs every preset in configs/ and compares.

The stages before RLHF are made once a seed and copied into the folder of every preset, which goes on from there in a
process of its own. Prints the tables and writes OUT/methods.html.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Comparison, MethodFigures, compare, harm_in_groups, method_figures
from benchmarks.comparison_page import (
    COLUMNS,
    COMPARISON_COLUMNS,
    CONSTRAINT_COLUMNS,
    cells,
    comparison_cells,
    constraint_cells,
    group_cells,
    group_columns,
    write_methods_page,
)
from benchmarks.trade_off import break_even_weights, harmless_ranked_first
from castor.config.load import load_config
from castor.evaluation.records import JudgedResponse, read_responses
from castor.evaluation.summary import Summary
from castor.io.files import write_text
from castor.run.files import RunFiles
from castor.statistics.bootstrap import Estimate

ROOT = Path(__file__).parents[1]
PRESETS = (
    *("ppo", "ppo_lag", "ppo_lag_paper_v1", "ppo_lag_paper_v2", "ppo_lag_paper_v3", "reward_shaping"),
    *("single_preference", "hh_ppo", "classifier_max", "classifier_mean", "pid_lag", "repo_rectified"),
    *("grpo_lag", "rloo_lag", "multi_constraint"),
)
WEIGHTS = {"reward_shaping_0_2": 0.2, "reward_shaping_10": 10.0}  # further fixed ν, beside the preset's 2
REFERENCE = "ppo_lag"  # what the others are compared with
BASE = "classifier_max"  # has every stage that presets share, the moderation model included


def judged(folder: Path, policy: str) -> list[JudgedResponse]:
    """The judged responses of a policy of a run."""
    return read_responses(RunFiles(folder).stage("evaluate").responses(policy))


def main() -> None:
    """Run what has no result yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), metavar="PRESET")
    parser.add_argument("--steps", type=int, help="RLHF steps of every preset; default: the presets' own")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("overrides", nargs="*", help="of all runs, e.g. sft.max_steps=100")
    args = parser.parse_args()
    out = args.out.absolute()
    overrides = [*args.overrides]
    if args.steps is not None:
        laid_over = out / "steps.yaml"
        write_text(laid_over, f'rlhf: {{"*": {{steps: {args.steps}}}}}\n')
        overrides.append(str(laid_over))
    further = {name: {"extends": "reward_shaping", "multipliers": {"lambda_init": nu}} for name, nu in WEIGHTS.items()}
    shapings = out / "shapings.yaml"
    write_text(shapings, yaml.safe_dump({"rlhf": further}))
    folders: dict[str, list[Path]] = {}
    for seed in args.seeds:
        base = out / f"seed-{seed}" / "base"
        castor(BASE, base, [*overrides, f"seed={seed}", f"rlhf.{BASE}=null", "evaluate=null"])
        for preset in args.presets:
            folder = base.with_name(preset)
            if not folder.exists():
                shutil.copytree(base, folder)
            more = [str(shapings)] if preset == "reward_shaping" else []
            castor(preset, folder, [*overrides, *more, f"seed={seed}", f"evaluate.prompts.split={args.split}"])
            for name in read_summary(folder).runs:
                folders.setdefault(name, []).append(folder)
    found = {name: [read_summary(folder) for folder in made] for name, made in folders.items()}
    methods = compared(found)
    groups, limits = constraint_groups()
    harm = harmful_shares({"sft": next(iter(folders.values())), **folders}, groups)
    console = Console(width=150)
    console.print(table("methods, gold judge, 95 % intervals", COLUMNS, [[m.name, *texts(cells(m))] for m in methods]))
    comparisons = against_reference(found)
    if comparisons:
        rows = [[c.name, *texts(comparison_cells(c))] for c in comparisons]
        console.print(table(f"less {REFERENCE} of the same seed, 95 % intervals", COMPARISON_COLUMNS, rows))
    rows = [[m.name, name, *texts(row)] for m in methods for name, row in constraint_cells(m).items()]
    console.print(table("constraints", CONSTRAINT_COLUMNS, rows))
    rows = [[name, *texts(group_cells(shares))] for name, shares in harm.items()]
    console.print(table("harm by group, gold judge, share of all responses", group_columns(limits), rows))
    steps = {len(s.runs[name].steps) for name, summaries in found.items() for s in summaries}
    note = (
        f"{', '.join(map(str, sorted(steps)))} steps of RLHF on the synthetic corpus, "
        f"seed{'s' if len(args.seeds) > 1 else ''} {', '.join(map(str, args.seeds))}, {args.split} split. "
        "Intervals are over seeds, or over prompts where there is one seed."
    )
    note = " ".join([note, *break_even(folders), *rankings(folders)])
    write_methods_page(out / "methods.html", methods, found, note, harm, limits, comparisons)
    console.print(note)
    console.print(f"page: {out / 'methods.html'}")


def castor(preset: str, folder: Path, overrides: Sequence[str]) -> None:
    """Run the pipeline of one preset; stages that are finished with these inputs are not run again."""
    command = [sys.executable, "-m", "castor", "pipeline", f"configs/{preset}.yaml", *overrides, f"run_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True)


def read_summary(folder: Path) -> Summary:
    """What the pipeline wrote."""
    return Summary.model_validate_json((folder / "summary.json").read_text(encoding="utf-8"))


def compared(found: dict[str, list[Summary]]) -> list[MethodFigures]:
    """The starting point, and every preset."""
    start = method_figures("sft", next(iter(found.values())))
    return [start, *(method_figures(name, summaries) for name, summaries in found.items())]


def against_reference(found: Mapping[str, Sequence[Summary]]) -> list[Comparison]:
    """Every other preset against the reference; none where the reference or a second seed was not run."""
    if len(found.get(REFERENCE, ())) < 2:
        return []
    return [compare(name, runs, REFERENCE, found[REFERENCE]) for name, runs in found.items() if name != REFERENCE]


def constraint_groups() -> tuple[dict[str, list[str]], dict[str, float]]:
    """The groups of categories that multi_constraint has constraints for, and their limits."""
    signals = load_config(ROOT / "configs" / "multi_constraint.yaml").rlhf["multi_constraint"].signals
    groups, limits = {}, {}
    for name, signal in signals.items():
        if signal.classifier and not isinstance(signal.classifier.reduce, str):
            assert signal.unsafe_share is not None
            groups[name], limits[name] = signal.classifier.reduce, signal.unsafe_share
    return groups, limits


def harmful_shares(
    folders: Mapping[str, Sequence[Path]], groups: dict[str, list[str]]
) -> dict[str, dict[str, Estimate]]:
    """Of every policy, from its run folders, the share of responses that are harmful in each group."""
    return {name: harm_in_groups([judged(folder, name) for folder in made], groups) for name, made in folders.items()}


def break_even(folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Which fixed ν is enough, as a sentence where both PPO and PPO-Lag were run."""
    if not {"ppo", "ppo_lag"} <= folders.keys():
        return []
    found = np.concatenate(
        [
            break_even_weights(judged(free, "ppo"), judged(safe, "ppo_lag"))
            for free, safe in zip(folders["ppo"], folders["ppo_lag"], strict=True)
        ]
    )
    if not len(found):
        return []
    low, middle, high = np.quantile(found, [0.05, 0.5, 0.95], method="inverted_cdf")
    return [
        f"On {len(found)} prompts that PPO answers harmfully and PPO-Lag does not, R - νC is the same for both answers "
        f"at a ν of {middle:.2f} in the median, {low:.2f} to {high:.2f} in nine of ten: beyond it the harmless answer "
        "is worth more."
    ]


def rankings(folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """What the reward models of the methods without a constraint make of harm, as a sentence where any was run."""
    shares: dict[str, float] = {}
    for name in [preset for preset in ("ppo", "hh_ppo", "single_preference") if preset in folders]:
        of_seeds = [harmless_ranked_first(judged(folder, "sft")) for folder in folders[name]]
        known = [share for share in of_seeds if share is not None]
        if known:
            shares[name] = float(np.mean(known))
    if not shares:
        return []
    said = ", ".join(f"{100 * share:.1f} % ({name})" for name, share in shares.items())
    return [
        f"Of useful answers of SFT to harmful prompts, the reward model ranks the harmless above the harmful: {said}."
    ]


def texts(row: Sequence[tuple[str, str]]) -> list[str]:
    """Cells in one line each."""
    return [f"{value} ({small})" if small else value for value, small in row]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For the terminal."""
    made = Table(title=title)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


if __name__ == "__main__":
    main()
