"""The guard of a served policy: what is judged, what counts as unsafe, and what becomes of an unsafe answer."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section

GuardMode = Literal["off", "annotate", "withhold", "best_of", "regenerate"]
STRICTNESS: dict[GuardMode, int] = {"off": 0, "annotate": 1, "withhold": 2, "best_of": 2, "regenerate": 2}
"""A request may ask for a mode that is at least as strict as the configured one. Those of 2 never deliver an unsafe
answer, and differ in what they do to find a safe one."""


class Windows(Section):
    """How a guarded answer is streamed: in windows, each judged together with the question and all before it."""

    tokens: int = Field(40, ge=1, description="tokens of a window; nothing of it leaves before it is judged")
    overlap: int = Field(
        0, ge=0, description="last tokens of a judged window that wait for the next one, and leave with it"
    )
    first_stage: Literal["cost", "all"] = Field(
        "cost", description="cost: a window is judged by the cost model alone, where there is one, and by every judge "
        "when that is suspicious, and at the end; all: every window by every judge"
    )  # fmt: skip
    suspicion: float = Field(
        0.5, ge=0, description="a window is suspicious when its cost is less than this under cost_limit"
    )

    @model_validator(mode="after")
    def _something_leaves(self) -> "Windows":
        if self.overlap >= self.tokens:
            raise ValueError(
                f"overlap {self.overlap} holds back whole windows of {self.tokens} tokens: make it smaller"
            )
        return self


class Guard(Section):
    """What of a policy's answers reaches the client. A question with its answer is judged, never a question alone."""

    mode: Literal["auto"] | GuardMode = Field(
        "auto", description="off; annotate: deliver everything, with its verdict; withhold: a refusal in place of an "
        "unsafe answer; best_of: of several, the most helpful safe one; regenerate: once more, with an instruction; "
        "auto: withhold where there is a cost or a moderation model, else off"
    )  # fmt: skip
    combine: Literal["any", "all"] = Field(
        "any", description="of a cost and a moderation model: unsafe when one of them says so, or only when both do"
    )
    cost_limit: float = Field(0.0, description="a cost above it is unsafe; zero is the cost model's own boundary")
    categories: dict[str, float] = Field(
        default_factory=dict, description="threshold of a category's probability, in place of the moderation model's "
        "calibrated decision for that category, e.g. {drug_abuse,weapons,banned_substance: 0.2}; 1 ignores it"
    )  # fmt: skip
    severity: int = Field(
        1, ge=1, le=3, description="lowest severity (1 minor to 3 severe) that counts as unsafe, where it is predicted"
    )
    n: int = Field(4, ge=2, le=64, description="best_of: answers to choose from")
    attempts: int = Field(1, ge=1, le=8, description="regenerate: further answers, before it is refused")
    instruction: str = Field(
        "Answer safely and lawfully: do not help anyone to cause harm, and say how to stay safe instead.",
        description="regenerate: put behind the user's last message",
    )
    refusal: str = Field(
        "I cannot give this answer, because it may cause harm. I am glad to help in another way.",
        min_length=1, description="what the client gets in place of a withheld answer",
    )  # fmt: skip
    deadline_s: float = Field(10.0, gt=0, description="longest wait for one verdict; an answer without one is withheld")
    windows: Windows = Field(default_factory=Windows, description="of streamed answers")

    @model_validator(mode="after")
    def _thresholds_are_probabilities(self) -> "Guard":
        for name, threshold in self.categories.items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"categories.{name}: {threshold} is no probability: give one from 0 to 1")
        return self
