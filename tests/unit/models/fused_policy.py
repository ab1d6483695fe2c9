"""A policy with Liger's kernels beside one without: a process, as Triton settles at its import whether to interpret.

Prints a line of JSON: by policy and temperature how often the kernels were asked in a forward pass, and the largest
differences of log-probabilities and of gradients; and what is found out about the kernels in bfloat16.
"""

import json

import torch

from castor.models import fused_logprobs, policy
from tests.unit.models.test_policy import LENGTHS, outcome, packed, policies


def main():
    """Compare, and print."""
    asked, kernels = [], fused_logprobs.fused_logprobs

    def counting(*args):
        asked.append(args)
        return kernels(*args)

    policy.fused_logprobs = counting
    found = {}
    for name, temperature, with_entropy in (
        ("llama", 1.0, False),
        ("llama tied", 1.0, False),
        ("phi", 1.0, False),
        ("llama", 0.7, False),
        ("llama", 1.0, True),
    ):
        whole, parts = policies(name, 4, torch.float32)
        asked.clear()
        expected, gradients = outcome(whole, *packed(LENGTHS), temperature, with_entropy)
        actual, ours = outcome(parts, *packed(LENGTHS), temperature, with_entropy)
        assert gradients.keys() == ours.keys()
        found[f"{name} {temperature} {with_entropy}"] = (
            len(asked),
            float((expected - actual).abs().max()),
            max(float((gradients[key] - ours[key]).abs().max()) for key in ours),
        )
    found["bfloat16"] = fused_logprobs._difference(torch.device("cpu"), torch.bfloat16)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
