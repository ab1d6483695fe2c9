"""What cannot be done in turns on the same GPUs is refused in a sentence."""

import pytest
from pydantic import ValidationError

from castor.config.rlhf import RLHF


def run(**changes):
    sections = {"steps": 1, "signals": {"help": {"role": "objective", "model": "m", "critic": {}}}, "colocate": True}
    return RLHF.model_validate(sections | changes)


def test_turns_need_nothing_else():
    assert run().transfer == "host"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"max_staleness": 1}}, r"colocate .* take turns, and rollout\.max_staleness"),
        (
            {"learner": {"engine": {"zero_stage": 3}}},
            r"zero_stage 2 in bfloat16, and that of learner\.engine is 3: set it",
        ),
        ({"learner": {"engine": {"zero_stage": 1}}}, r"that of learner\.engine is 1"),
        ({"learner": {"engine": {"zero_stage": 0}}}, r"that of learner\.engine is 0"),
        ({"learner": {"engine": {"offload": {"optimizer": "cpu"}}}}, r"remove the offload section of learner\.engine"),
        (
            {"signals": {"help": {"role": "objective", "model": "m", "critic": {"zero_stage": 3}}}},
            r"that of signals\.help\.critic is 3",
        ),
        ({"rollout": {"transfer": "gloo"}}, r"rollout\.transfer gloo sends weights to engines that are awake"),
    ],
)
def test_what_excludes_turns_is_named(changes, message):
    with pytest.raises(ValidationError, match=message):
        run(**changes)
