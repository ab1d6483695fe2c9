"""The closing comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from castor.run.actors import Actors, Frozen, rollout_workers
from castor.run.stages.stage import LANGUAGE_MODEL, Kind, Read, RowsRead, Stage, helper

if TYPE_CHECKING:
    from castor.config.evaluate import Evaluate
    from castor.config.model import ModelOption
    from castor.config.rollout import Rollout
    from castor.config.training import Engine


class EvaluateStage(Stage):
    """Every policy answers the held-out prompts and is judged. `plan` has filled in which policies."""

    field, makes = "evaluate", "report"
    summary = "Compare the policies on held-out prompts; write summary.json and report.html."
    runner = "trainers.evaluate:run_evaluate"
    can_resume = False

    section: Evaluate

    @property
    def policies(self) -> dict[str, ModelOption]:
        """Name and model of each policy that is compared."""
        assert self.section.policies is not None  # `plan` has filled them in
        return self.section.policies

    def models(self) -> Iterator[Read]:
        """The policies and the judges."""
        for name, policy in self.policies.items():
            yield Read(f"policies.{name}", policy, LANGUAGE_MODEL)
        if self.section.reward is not None:
            yield Read("reward", self.section.reward, frozenset({"reward model"}))
        harm: Kind = "moderation model" if self.section.cost_classifier else "cost model"
        yield Read("cost", self.section.cost, frozenset({harm}))

    def rows(self) -> Sequence[RowsRead]:
        """The held-out prompts."""
        return [RowsRead("prompts", self.section.prompts, "prompts")]

    @property
    def trains_on_rows(self) -> bool:
        """These are the prompts that others must not train on."""
        return False

    @property
    def rollout(self) -> Rollout:
        """Its section's."""
        return self.section.rollout

    def actors(self) -> list[Actors]:
        """Rollout workers, which hold the policies in turn, and a scorer for each judge."""
        first, stage = next(iter(self.policies.values())), self.section
        scorers = [
            Actors(
                f"{kind}-scorer", 1, stage.resources, f"frozen {kind} model", (Frozen(model, scoring_engine(), True),)
            )
            for kind, model in (("reward", stage.reward), ("cost", stage.cost))
            if model is not None
        ]
        return [
            rollout_workers(first, stage.rollout),
            *scorers,
            helper("FolderWeights", f"hands {len(self.policies)} policies to the engines in turn"),
        ]

    def findings(self) -> Iterator[str]:
        """A comparison of nobody."""
        if not self.policies:
            yield (
                "evaluate has no policy to compare: add an sft section, a dpo stage, an rlhf run, or evaluate.policies"
            )


def scoring_engine() -> Engine:
    """How the scorers compute; the section has no options for it."""
    from castor.config.training import Engine

    return Engine(pack_length=128)
