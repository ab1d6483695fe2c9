"""Does a model beat what needs no model? Said in words, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from castor.evaluation.assessment import Assessment, Baseline, Model, SetName
from castor.reports.wording import number

# Figures that a model is held to, and their names in a sentence. High is good in all of them. A calibration error is
# left out: a constant answer is perfectly calibrated.
COMPARED = {
    "reward_accuracy": "reward accuracy",
    "cost_ranking_accuracy": "cost ranking accuracy",
    "cost_sign_accuracy": "cost sign accuracy",
    "f1": "F1",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "exact_match": "exact match",
    "macro_f1": "macro F1",
    "severity_accuracy": "severity accuracy",
}


@dataclass(frozen=True)
class Finding:
    """What is said of one model on one data set. `tone` is 'good', 'mixed' or 'bad'."""

    model: str
    data: SetName
    tone: str
    sentence: str


def findings(assessment: Assessment) -> list[Finding]:
    """One for each model and data set with a figure that can be compared, what is wrong first.

    A model that is not above the best baseline does not beat it; one whose interval holds the baseline's figure is not
    clearly above it.
    """
    order = {"bad": 0, "mixed": 1, "good": 2}
    return sorted(_each(assessment), key=lambda finding: order[finding.tone])


def rivals(assessment: Assessment, model: Model) -> list[Baseline]:
    """The baselines that tell what `model` tells, with labels of its taxonomy where it has labels."""
    of = "helpfulness" if model.kind == "reward" else "safety"
    labels = max((len(measured.by_label) for measured in model.sets.values()), default=0)
    found = [each for each in assessment.baselines if each.of == of]
    return [each for each in found if labels in (0, each.categories)]


def _each(assessment: Assessment) -> Iterator[Finding]:
    for name, model in assessment.models.items():
        for data, measured in model.sets.items():
            lost, close, won = list[str](), list[str](), 0
            for figure, title in COMPARED.items():
                mine = measured.overall.get(figure)
                theirs = {
                    each.name: each.sets[data].overall.get(figure)
                    for each in rivals(assessment, model)
                    if data in each.sets
                }
                known = {rival: found.value for rival, found in theirs.items() if found is not None}
                if mine is None or not known:
                    continue
                best = max(known.values())
                ahead = {rival: value for rival, value in known.items() if value >= mine.value}
                if ahead:
                    lost.append(f"{title} {number(mine.value, True)} ({_told(ahead)})")
                elif mine.low <= best:
                    close.append(title)
                else:
                    won += 1
            if lost or close or won:
                yield _finding(name, data, _where(assessment, data), lost, close, won)


def _finding(name: str, data: SetName, where: str, lost: list[str], close: list[str], won: int) -> Finding:
    near = f" Not clearly above the best of them: {', '.join(close)}." if close else ""
    if lost:
        every = "does not beat trivial baselines" if won or close else "beats trivial baselines in nothing"
        return Finding(name, data, "bad", f"{name} {every}{where}: {'; '.join(lost)}.{near}")
    if close:
        return Finding(name, data, "mixed", f"{name} is above every trivial baseline{where}.{near}")
    return Finding(name, data, "good", f"{name} beats every trivial baseline{where} clearly.")


def _told(ahead: dict[str, float]) -> str:
    """The plainest and the best of the baselines that are ahead, which stand in the order of their means."""
    plainest, best = next(iter(ahead)), max(ahead, key=lambda rival: ahead[rival])
    return ", ".join(f"{rival} {number(ahead[rival], True)}" for rival in dict.fromkeys((plainest, best)))


def _where(assessment: Assessment, data: SetName) -> str:
    return f" on {assessment.data[data].source}" if len(assessment.data) > 1 else ""
