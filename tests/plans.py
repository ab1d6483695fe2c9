"""Plans, stages and what their runners are given, for tests that carry out a part of a run by themselves."""

from typing import Any

from actors.group import ActorGroup
from actors.reservation import Reservation
from castor.config.pipeline import Config
from castor.config.rlhf import RLHF
from castor.config.training import Resources
from castor.io.terminal import Terminal
from castor.run.actors import Actors
from castor.run.claim import Claim, Inputs
from castor.run.plan import Plan, make_plan
from castor.run.stages.rlhf import RLHFStage
from castor.run.trackers.trackers import Trackers
from trainers.stage_run import RowReader, StageRun


class Lines:
    """Takes the place of the terminal: keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def actors_of(config: RLHF) -> dict[str, Actors]:
    """The actors an RLHF run starts, by name."""
    return {each.name: each for each in RLHFStage("run", "rlhf.run", config).actors()}


def plan_of(values: dict) -> Plan:
    """The plan of a config given as a dictionary."""
    return make_plan(Config.model_validate(values))


def run_of(plan: Plan, name: str, terminal: Terminal | None = None, fresh: bool = False) -> StageRun:
    """What the runner of a stage is given, without the models it reads."""
    files, screen = plan.files.stage(name), terminal or Terminal()
    rows = RowReader(name, files, plan.source, plan.config.seed, screen)
    stage, template = plan.stage(name), plan.config.template
    claim = claim_of(name, fresh)
    tracker = Trackers([])
    return StageRun(stage, {}, files, rows, plan.seed(name), template, claim, plan.bundles(stage), screen, tracker)


def claim_of(stage: str = "stage", fresh: bool = False, accept_changes: bool = False, **recipe: Any) -> Claim:
    """The claim of a stage that reads nothing."""
    return Claim(stage, Inputs(recipe, {}, {}), fresh, accept_changes)


def spmd_group(name: str, actor_class: Any, ranks: int) -> ActorGroup:
    """The ranks of an SPMD group, started where Ray likes, which have not joined yet."""
    return ActorGroup.start(Actors(name, ranks, Resources(), ""), actor_class, Reservation())
