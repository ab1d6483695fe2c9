"""The closing comparison as it follows from the rest of a config: which runs it compares, by which judges."""

from __future__ import annotations

from collections.abc import Mapping

from castor.config.evaluate import Evaluate, FurtherJudge
from castor.config.judge import Judge
from castor.config.model import source_of, stage_of
from castor.config.rlhf import RLHF


def policy_of(section: Evaluate, run: str) -> str | None:
    """The name under which the policy of a run is compared; None: it is not."""
    policies = section.policies or {}
    return next((name for name, model in policies.items() if stage_of(source_of(model)) == run), None)


def judged_as_trained(section: Evaluate, runs: Mapping[str, RLHF]) -> Evaluate:
    """The section with a further judge for every constraint of a compared run that it would not judge otherwise.

    The judge has the constraint's name; where several runs have constraints of one name with different judges, the
    run's in front: RUN/NAME. A switched-off `constraints` leaves the section as it is.
    """
    if not section.constraints:
        return section
    wanted = {
        (run, name): FurtherJudge(measures="cost", **{key: getattr(signal, key) for key in Judge.model_fields})
        for run, config in runs.items()
        if policy_of(section, run) is not None
        for name, signal in config.constraints.items()
        if section.judge_of(signal) is None
    }
    judges = dict(section.judges)
    for (run, name), judge in wanted.items():
        alike = all(judge.gives(other) for (_, its), other in wanted.items() if its == name)
        judges[name if alike and name not in section.all_judges else f"{run}/{name}"] = judge
    return section.model_copy(update={"judges": judges})
