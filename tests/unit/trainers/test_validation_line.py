"""What the terminal says of a validation while a supervised stage trains."""

import pytest

from actors.progress import Progress
from castor.config.moderation import Moderation
from castor.config.supervised import Best
from trainers.supervised.stages import validation_line


def said(found: dict[str, float], **options: object) -> str | None:
    stage = Moderation.model_validate({"model": "m", "data": [{"source": "synthetic"}], "eval_every": 10, **options})
    return validation_line(stage, Progress(30, 90, found))


@pytest.mark.parametrize(
    ("since", "patience", "end"),
    [
        (0.0, 3, "(the best so far)"),
        (2.0, None, "(the best was step 10)"),
        (2.0, 3, "(the best was step 10; 2 of 3 in a row without a better one)"),
        (3.0, 3, "(the best was step 10; 3 of 3 in a row without a better one: stops early)"),
    ],
    ids=["best", "no patience", "waiting", "stops"],
)
def test_loss_measure_and_early_stopping_are_said(since: float, patience: int | None, end: str) -> None:
    found = {"validation_loss": 0.53125, "f1": 0.664, "accuracy": 0.7, "best_step": 10.0, "since_best": since}
    line = said(
        {f"validation/{name}": value for name, value in found.items()},
        best=Best(metric="f1", mode="max").model_dump(), patience=patience,
    )  # fmt: skip
    assert line == f"step 30 of 90: validation_loss 0.5312, f1 0.664 {end}"


def test_a_step_of_training_is_no_validation() -> None:
    assert said({"loss": 1.0, "tokens_per_s": 10.0}) is None
    assert said({"validation/validation_loss": 1.0}) == "step 30 of 90: validation_loss 1"
