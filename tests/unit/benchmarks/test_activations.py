"""Peaks that the dry run estimates, against those of real forward and backward passes."""

import pytest

from benchmarks.activations import CASES, estimated, measured


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pass_takes_no_more_than_the_dry_run_says_and_not_much_less(case):
    said, found = estimated(case), measured(case)
    # where few tokens are recomputed at a time, that moment and the one with all gradients are two
    assert 0.96 * found <= said <= 1.25 * found
