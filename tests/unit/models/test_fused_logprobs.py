"""Liger's kernels in place of chunks, interpreted, as the tests have no GPU; and kernels that are not to be trusted."""

import importlib.util
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from castor.algorithms.logprobs import token_logprobs
from castor.models import fused_logprobs
from castor.models.fused_logprobs import can_fuse

LAYER = nn.Linear(8, 20, bias=False)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger comes for Linux on x86-64 only")
def test_the_kernels_give_the_numbers_of_all_logits_at_once():
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.models.fused_policy"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found.pop("bfloat16") == ""
    asked = {case: differences[0] for case, differences in found.items()}
    assert asked == {
        "llama 1.0 False": 1,
        "llama tied 1.0 False": 1,
        "phi 1.0 False": 1,  # its output layer has a bias
        "llama 0.7 False": 0,  # the kernels know no temperature
        "llama 1.0 True": 0,  # and no entropy
    }
    assert all(logprobs < 1e-5 and gradients < 1e-4 for _, logprobs, gradients in found.values()), found


@pytest.fixture
def proved(monkeypatch, caplog):
    """Whether `can_fuse` takes kernels that do this, and what it logged."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused_logprobs, "LIGER", "math")  # something that can be imported

    def ask(kernels):
        monkeypatch.setattr(fused_logprobs, "fused_logprobs", kernels)
        fused_logprobs._proved.cache_clear()
        with caplog.at_level(logging.WARNING):
            return can_fuse(LAYER), caplog.text

    yield ask
    fused_logprobs._proved.cache_clear()


def right(head, hidden, tokens):
    return token_logprobs(linear(hidden, head.weight), tokens)


def off_by_a_thousandth(head, hidden, tokens):
    return 1.001 * right(head, hidden, tokens)


def without_gradients_of_the_head(head, hidden, tokens):
    return token_logprobs(linear(hidden, head.weight.detach()), tokens) + 0.0 * head.weight.sum()


def not_a_number(head, hidden, tokens):
    return right(head, hidden, tokens) * torch.nan


def another_version(head, hidden, tokens):
    raise TypeError("apply() takes 5 arguments")


def test_right_kernels_are_used(proved):
    assert proved(right) == (True, "")


@pytest.mark.parametrize(
    ("kernels", "told"),
    [
        (off_by_a_thousandth, "log-probabilities differ by up to"),
        (without_gradients_of_the_head, "gradients of the head differ by up to"),
        (not_a_number, "log-probabilities differ by up to nan"),
        (another_version, "TypeError: apply() takes 5 arguments"),
    ],
)
def test_wrong_kernels_are_not_used(proved, kernels, told):
    used, log = proved(kernels)
    assert not used
    assert "Liger's kernels are installed but not used" in log
    assert told in log


def test_nothing_is_said_where_there_are_none(proved, monkeypatch):
    monkeypatch.setattr(fused_logprobs, "LIGER", "no_such_module")
    assert proved(right) == (False, "")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(fused_logprobs, "LIGER", "math")
    assert proved(right) == (False, "")


def test_a_layer_that_does_something_else_is_left_to_chunks(proved):
    class Scaled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    assert proved(right)[0]
    assert not can_fuse(Scaled(8, 20))
    assert not can_fuse(nn.Sequential(LAYER))
