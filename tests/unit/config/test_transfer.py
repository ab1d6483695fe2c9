"""How weights travel, decided by where learner and engines are; and what cannot work, said before anything starts."""

import pytest
from pydantic import ValidationError

from castor.config.rlhf import RLHF


def rlhf(learner_gpus=0.0, rollout_gpus=0.0, **rollout):
    return RLHF.model_validate(
        {
            "steps": 1,
            "signals": {"help": {"role": "objective", "model": "reward"}},
            "policy": {"lora": {}},
            "learner": {"resources": {"gpus": learner_gpus}},
            "rollout": {"resources": {"gpus": rollout_gpus}, **rollout},
        }
    )


CONTINUE = {"max_staleness": 1, "on_new_weights": "continue"}
FINISH = {"max_staleness": 1, "on_new_weights": "finish"}


@pytest.mark.parametrize(
    ("learner", "rollout", "options", "transfer"),
    [
        (0, 0, {}, "host"),
        (1, 1, {}, "nccl"),
        (1, 2, CONTINUE, "nccl"),
        (1, 1, FINISH, "host"),
        (0.5, 0.5, {}, "ipc"),
        (0.5, 0.5, FINISH, "host"),
        (0.5, 0.6, {}, "host"),
        (0.25, 0.5, {"workers": 2}, "host"),
        (0.5, 0, {}, "host"),
        (1, 0, {}, "host"),
        (0, 0, {"transfer": "gloo"}, "gloo"),
        (0.5, 1, {"transfer": "gloo", **CONTINUE}, "gloo"),
        (1, 1, {"transfer": "host"}, "host"),
        (0, 0, {"transfer": "ipc"}, "ipc"),
        (0.5, 0.6, {"transfer": "ipc"}, "ipc"),
        (1, 1, {"transfer": "nccl"}, "nccl"),
    ],
)
def test_the_way_follows_from_where_the_parts_are(learner, rollout, options, transfer):
    assert rlhf(learner, rollout, **options).transfer == transfer


@pytest.mark.parametrize(
    ("learner", "rollout", "options", "said"),
    [
        (0, 0, {"transfer": "nccl"}, "nccl needs whole GPUs on both sides"),
        (0.5, 1, {"transfer": "nccl"}, "nccl needs whole GPUs on both sides"),
        (0.5, 1, {"transfer": "ipc"}, "ipc needs learner and engines on one GPU"),
        (1, 1, {"transfer": "nccl", **FINISH}, "set on_new_weights to continue, or take transfer host"),
        (0, 0, {"transfer": "gloo", **FINISH}, "set on_new_weights to continue, or take transfer host"),
    ],
)
def test_a_way_that_cannot_work_is_refused(learner, rollout, options, said):
    with pytest.raises(ValidationError, match=said):
        rlhf(learner, rollout, **options)


def test_the_way_changes_no_result():
    assert rlhf().recipe() == rlhf(transfer="gloo", transfer_timeout_s=1.0).recipe()
