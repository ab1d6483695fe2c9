"""The closing comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from castor.run.actors import Actors, Frozen, rollout_workers
from castor.run.stages.stage import LANGUAGE_MODEL, Kind, Read, RowsRead, Stage, helper

if TYPE_CHECKING:
    from castor.config.evaluate import Evaluate, FurtherJudge
    from castor.config.judge import Judge
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
        """The policies, and the judges that are models."""
        for name, policy in self.policies.items():
            yield Read(f"policies.{name}", policy, LANGUAGE_MODEL)
        for name, judge in self.section.all_judges.items():
            if judge.model is not None:
                yield Read(judge_key(name), judge.model, frozenset({_kind(judge)}))

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
        """Rollout workers, which hold the policies in turn, and the scorers.

        Reward and cost model score while responses are sampled. The further judges follow, one after the other, in the
        place of the last of these: they ask for no GPU of their own.
        """
        first, stage = next(iter(self.policies.values())), self.section
        scorers = []
        for name, turns in self.turns().items():
            frozen = tuple(Frozen(judge.model, scoring_engine(), True) for judge in turns.values() if judge.model)
            resources = stage.resources if frozen else stage.resources.model_copy(update={"gpus": 0})
            work = f"frozen {name} model" if name in turns else ""
            if further := [each for each in turns if each != name]:
                work += f"{', then' * bool(work)} one after the other: {', '.join(further)}".removeprefix(" ")
            scorers.append(Actors(f"{name}-scorer", 1, resources, work, frozen, one_by_one=True))
        return [
            rollout_workers(first, stage.rollout),
            *scorers,
            helper("FolderWeights", f"hands {len(self.policies)} policies to the engines in turn"),
        ]

    def turns(self) -> dict[str, dict[str, FurtherJudge]]:
        """The judges that every scorer is, one after the other, by the scorer's name."""
        further = self.section.judges
        found = {name: {name: judge} for name, judge in self.section.all_judges.items() if name not in further}
        if further:
            last = next(reversed(found), "judge")
            found[last] = found.get(last, {}) | further
        return found

    def judges(self) -> Iterator[tuple[str, Judge]]:
        """All that judge the policies."""
        for name, judge in self.section.all_judges.items():
            yield f"{self.place}.{judge_key(name).removesuffix('.model')}", judge

    def findings(self) -> Iterator[str]:
        """A comparison of nobody."""
        if not self.policies:
            yield (
                "evaluate has no policy to compare: add an sft section, a dpo stage, an rlhf run, or evaluate.policies"
            )


def _kind(judge: FurtherJudge) -> Kind:
    """What kind of model judges."""
    if judge.classifier is not None:
        return "moderation model"
    return "cost model" if judge.measures == "cost" else "reward model"


def judge_key(name: str) -> str:
    """The key of the section at which the model of a judge stands."""
    return name if name in ("reward", "cost") else f"judges.{name}.model"


def scoring_engine() -> Engine:
    """How the scorers compute; the section has no options for it."""
    from castor.config.training import Engine

    return Engine(pack_length=128)
