"""Scores from a Python function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from castor.io.errors import CastorError
from castor.io.user_function import call_function, load_function


class FunctionScorer:
    """Calls `module:function` with the prompts and the responses of one chunk."""

    def __init__(self, name: str, directory: Path | None = None) -> None:
        """Import it; `directory` is searched too. Raises CastorError when there is no such function."""
        self.name, self.function = name, load_function(name, directory)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One number a response.

        Raises CastorError, naming the function and a prompt, when it returns something else, or a number that is not
        finite; with its message, file and line, when it raises.
        """
        returned = call_function(self.name, self.function, list(prompts), list(responses))
        # a string is iterable, and a mapping's keys are no scores
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | dict):
            raise CastorError(
                f"{self.name} returned {type(returned).__name__}; it must return one number for each response"
            )
        scores = list(returned)
        if len(scores) != len(responses):
            raise CastorError(
                f"{self.name} returned {len(scores)} scores for {len(responses)} responses (the first one to the "
                f"prompt {prompts[0][:200]!r}); it must return one for each, in their order"
            )
        return [self._number(score, prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def _number(self, score: object, prompt: str) -> float:
        try:  # of any numeric type, such as numpy's; a text that spells a number is none
            number = math.nan if isinstance(score, str | bytes) else float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise CastorError(
                f"{self.name} gave {score!r} as the score of a response to the prompt {prompt[:200]!r}; "
                "a score must be a finite number"
            )
        return number
