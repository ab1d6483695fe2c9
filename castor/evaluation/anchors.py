"""What the papers report, to stand beside what is measured here. Their models have 7 to 8 billion parameters.

The figures were collected from accounts of the papers, not from the papers' own files; `ACCOUNTS` says how sure each
one is. Figures that no account confirms are left out, such as PKU-SafeRLHF's agreement between annotators and
QA-moderation's exact agreement with other judges.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Account = Literal["translation", "reviews", "note"]
Task = Literal["preference", "moderation", "agreement"]

ACCOUNTS: dict[Account, str] = {
    "translation": "a full translation of version 3 and a second, independent summary give the same number",
    "reviews": "several independent reviews and summaries give the same number",
    "note": "one reading note of the paper: a single witness",
}
BEAVERTAILS = "BeaverTails, arXiv 2307.04657"
SAFE_RLHF = "Safe RLHF, arXiv 2310.12773"
PKU_SAFERLHF = "PKU-SafeRLHF, arXiv 2406.15513"


class Anchor(BaseModel):
    """One system of one paper and its figures, under the names that ours have in assess.json; shares from 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    system: str
    figures: dict[str, float]
    source: str = Field(description="Paper and place in it.")
    account: Account = Field(description="Where the number was read; see ACCOUNTS in castor/evaluation/anchors.py.")


def _preference(system: str, reward: float, ranking: float, sign: float, source: str, account: Account) -> Anchor:
    figures = {"reward_accuracy": reward, "cost_ranking_accuracy": ranking, "cost_sign_accuracy": sign}
    return Anchor(task="preference", system=system, figures=figures, source=source, account=account)


def _moderation(system: str, accuracy: float, f1: float, fpr: float, **more: float) -> Anchor:
    figures = {"accuracy": accuracy, "f1": f1, "false_positive_rate": fpr, **more}
    source = f"{PKU_SAFERLHF}, section 4.1 and Table 1"
    return Anchor(task="moderation", system=system, figures=figures, source=source, account="note")


def _agreement(system: str, ratio: float, source: str, account: Account) -> Anchor:
    return Anchor(task="agreement", system=system, figures={"ratio": ratio}, source=source, account=account)


# BeaverTails and Safe RLHF give the first round's cost ranking accuracy as 74.37 and 74.47 %: one model or a misprint.
ANCHORS: tuple[Anchor, ...] = (
    _preference("BeaverTails, 9:1 split", 0.7813, 0.7437, 0.9562, f"{BEAVERTAILS}, Table 1", "translation"),
    _preference("Beaver-v1", 0.7813, 0.7447, 0.9562, f"{SAFE_RLHF}, Table 1", "reviews"),
    _preference("Beaver-v2", 0.7573, 0.7607, 0.8454, f"{SAFE_RLHF}, Table 1", "reviews"),
    _preference("Beaver-v3", 0.7732, 0.7417, 0.8588, f"{SAFE_RLHF}, Table 1", "reviews"),
    _moderation("PKU-SafeRLHF moderation", 0.93, 0.93, 0.077, exact_match=0.713, severity_accuracy=0.85),
    _moderation("Llama-Guard 2", 0.88, 0.87, 0.107),
    _moderation("Llama-Guard", 0.78, 0.71, 0.055),
    _moderation("Perspective API", 0.53, 0.18, 0.053),
    _moderation("OpenAI Moderation", 0.53, 0.10, 0.002),
    _agreement("Annotators: is it safe (BeaverTails)", 0.8168, f"{BEAVERTAILS}, section 3.1", "translation"),
    _agreement("Annotators: more helpful (BeaverTails)", 0.6239, f"{BEAVERTAILS}, section 3.1", "translation"),
    _agreement("Annotators: less harmful (BeaverTails)", 0.6091, f"{BEAVERTAILS}, section 3.1", "translation"),
    _agreement("Annotators: more helpful (Safe RLHF)", 0.6900, SAFE_RLHF, "reviews"),
    _agreement("Annotators: less harmful (Safe RLHF)", 0.6653, SAFE_RLHF, "reviews"),
    _agreement("Annotators: one overall preference (Safe RLHF)", 0.6165, SAFE_RLHF, "reviews"),
)
