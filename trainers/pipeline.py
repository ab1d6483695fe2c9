"""All stages in order. A finished stage is not run again unless its recipe or one of its inputs changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import psutil

from actors.startup import Beginning
from castor.io.checkpoint import verify_folder
from castor.io.terminal import Terminal
from castor.run.bundles import require_room
from castor.run.claim import Claim
from castor.run.plan import Plan
from castor.run.profile import Profile
from castor.run.records import Records
from castor.run.stages.stage import Stage
from castor.run.trackers.trackers import Trackers
from trainers.leaks import report_leaks
from trainers.model_card import write_model_card
from trainers.profiling import recording
from trainers.stage_run import RowReader, StageRun
from trainers.summary import write_results

if TYPE_CHECKING:  # a run with nothing to do needs no Ray
    from actors.handover import Handover, Wanted


@dataclass
class Pipeline:
    """Runs the stages of a plan, one at a time."""

    plan: Plan
    terminal: Terminal
    tracker: Trackers
    join_cluster: Callable[[bool], None]  # connects to Ray, or starts it; whether vLLM's engines will be started on it
    profiled: bool = False  # whether a timeline of every stage is recorded
    traced: frozenset[str] = frozenset()  # of what a stage's torch traces are made: `castor.run.profile.traceable`
    beginning: Beginning = field(
        default_factory=lambda: Beginning(since=psutil.Process().create_time())
    )  # the next one's
    _handover: Handover | None = field(default=None, init=False)  # between the stages of `run`
    _joined: bool = field(default=False, init=False)

    @property
    def records(self) -> Records:
        """Which stages are finished."""
        return Records(self.plan.files)

    def run(self, fresh: bool = False, accept_changes: bool = False) -> None:
        """Run every stage that is not finished with these inputs; then write summary.json and report.html.

        `fresh` and `accept_changes`: see `run_stage`.
        """
        if fresh:
            self.records.clear()
            self.tracker.start_over()
        reused: dict[str, bool] = {}

        def is_finished(stage: Stage) -> bool:
            first = False not in reused.values()
            reused[stage.name] = self.is_finished(stage)
            if first and not reused[stage.name]:  # the first stage that runs
                self._require_room(list(self.plan.stages.values())[len(reused) - 1 :])
                report_leaks(self.plan, self.terminal)
            return reused[stage.name]

        self.run_each(list(self.plan.stages.values()), is_finished, fresh, accept_changes)
        if self.plan.of_kind("evaluate"):
            self.close(reused)

    def run_each(
        self,
        stages: Sequence[Stage],
        is_finished: Callable[[Stage], bool],
        fresh: bool = False,
        accept_changes: bool = False,
    ) -> None:
        """Run those of the stages, in this order, that are not finished when their turn comes: see `run_stage`."""
        try:
            for stage, following in zip_longest(stages, stages[1:]):
                if not is_finished(stage):
                    self.run_stage(stage, fresh, accept_changes, following)
        finally:
            if self._handover is not None:
                self._handover.end()

    def close(self, reused: Mapping[str, bool]) -> None:
        """Summary and report; `reused` tells of every stage that was looked at whether it was finished before."""
        write_results(self.plan, self.terminal, reused)

    def is_finished(self, stage: Stage) -> bool:
        """Whether a stage was finished with these inputs, which is then said. Raises CastorError when the model that it
        left is damaged or gone.
        """
        record = self.records.of(stage.name)
        if record is None or record.key != self.plan.key(stage):
            return False
        if stage.makes_model:
            verify_folder(self.plan.model_folder(stage.name))
        self.terminal.line(f"[green]✓[/] {stage.name:<10} finished before, unchanged")
        return True

    def run_stage(
        self, stage: Stage, fresh: bool = False, accept_changes: bool = False, following: Stage | None = None
    ) -> None:
        """Run one stage and record it: from its checkpoint where it has one and is not to start `fresh`; from one of
        other inputs only to `accept_changes`. `following` is the stage that comes next, if it is not finished.
        """
        inputs, models = self.plan.inputs(stage), self.plan.models(stage)
        self._require_room([stage])
        files = self.plan.files.stage(stage.name)
        config = self.plan.config
        rows = RowReader(stage.name, files, self.plan.source, config.seed, self.terminal)
        seed, bundles = self.plan.seed(stage.name), self.plan.bundles(stage)
        claim = Claim(stage.name, inputs, fresh, accept_changes)
        self.beginning.stage = stage.name
        profile = Profile(files.profile, self.traced) if self.profiled and stage.actors() else None
        run = StageRun(
            stage, models, files, rows, seed, config.template, claim, bundles, self.terminal, self.tracker,
            self.beginning, profile, self._handed_over(stage, following),
        )  # fmt: skip
        with self.records.recorded(stage.name, inputs.key) as startup, recording(run):
            told = stage.load_runner()(run)
            startup |= run.beginning.record()
            if stage.makes_model:
                write_model_card(self.plan, run)
        self.tracker.log(stage.name, 0, run.beginning.metrics())
        self.beginning = Beginning()
        record = self.records.of(stage.name)
        assert record is not None
        self.terminal.line(f"[green]✓[/] {stage.name:<10} {told}  [dim]{record.seconds:.0f} s[/]")

    def _handed_over(self, stage: Stage, following: Stage | None) -> Handover:
        """What is left to a stage. Actors that are recorded are not handed on: a record is of one stage."""
        from actors.handover import Handover

        if self._handover is None:
            self._handover = Handover()
        next_wanted = None if following is None or self.profiled else self._wanted(following)
        self._handover.begin(self._wanted(stage), next_wanted)
        return self._handover

    def _wanted(self, stage: Stage) -> Wanted:
        from actors.handover import Wanted

        workers = next((each for each in stage.actors() if each.name == "rollout"), None)
        return Wanted(workers, self.plan.bundles(stage))

    def _require_room(self, stages: Sequence[Stage]) -> None:
        """Join the cluster; raise CastorError when it has too few GPUs for a stage and cannot grow."""
        self.beginning.lap("command")
        if not self._joined:
            self.join_cluster(any(stage.rollout is not None for stage in stages))
            self._joined = True
        self.beginning.lap("Ray")
        if self.plan.config.ray.started_here:
            from actors.cluster import gpus_of_nodes

            nodes = gpus_of_nodes()
            for stage in stages:
                require_room(self.plan.bundles(stage), stage.name, nodes)
