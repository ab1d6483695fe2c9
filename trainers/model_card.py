"""What a run knows of the models it left, as their model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from castor.config.demo_model import DemoModel
from castor.config.model import source_of
from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.evaluation.metrics import PolicyMetrics
from castor.io.files import read_json, write_text
from castor.model_reference import CARD
from castor.reports.limits import Told
from castor.reports.model_card import ModelFacts, model_card, with_comparison
from castor.run.plan import Plan
from castor.run.stages.stage import Stage
from trainers.stage_run import StageRun, row_counts


def write_model_card(plan: Plan, run: StageRun) -> None:
    """Write the card of the model that a stage has just left, beside its weights.

    It is not of the folder's manifest: people are meant to edit it.
    """
    stage = run.stage
    start = stage.starts_from()
    origin = None if start is None else plan.origin(start)
    facts = ModelFacts(
        stage=stage.name,
        kind=stage.makes,
        run=plan.files.folder.name,
        base=None if origin is None or isinstance(origin, DemoModel) else origin.source,
        start=None if start is None else source_of(start),
        template=plan.config.template,
        seed=plan.config.seed,
        data=run.rows.taken,
        rows=row_counts(run.files),
        judges=_judges(stage),
        figures=_figures(run),
    )
    write_text(plan.model_folder(stage.name) / CARD, model_card(facts))


def add_comparison(plan: Plan, policies: Mapping[str, PolicyMetrics], limits: Sequence[Told] = ()) -> None:
    """Add what `evaluate` found to the cards of the policies that stages of the run left; `limits` are all runs'."""
    for name, option in plan.policies.items():
        made = next((stage for stage in plan.stages.values() if source_of(option) == f"stage:{stage.name}"), None)
        card = None if made is None else plan.model_folder(made.name) / CARD
        if made is not None and card is not None and card.is_file():
            own = [limit for limit in limits if limit.run == made.name]
            write_text(card, with_comparison(card.read_text(encoding="utf-8"), name, policies, own))


def _judges(stage: Stage) -> dict[str, str]:
    if not isinstance(stage.section, RLHF):
        return {}
    return {name: _judge(signal) for name, signal in stage.section.signals.items()}


def _judge(signal: Signal) -> str:
    if signal.model is not None:
        return f"{signal.role}, judged by `{source_of(signal.model)}`"
    return f"{signal.role}, judged by a {'function' if signal.function is not None else 'remote scorer'}"


def _figures(run: StageRun) -> dict[str, Any]:
    """Those of a supervised stage; of an RLHF run the last step's."""
    if not isinstance(run.section, RLHF):
        return dict(read_json(run.files.metrics)) if run.files.metrics.is_file() else {}
    record = read_json(run.files.run_record) if run.files.run_record.is_file() else {}
    steps = record.get("steps")
    if not steps:
        return {}
    last, many = steps[-1], (("mean_costs", "mean cost"), ("multipliers", "multiplier"))
    named = {f"{word} {name}": value for key, word in many for name, value in last.get(key, {}).items()}
    return {key: last[key] for key in ("step", "weighted_reward", "kl") if key in last} | named
