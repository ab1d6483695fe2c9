"""The algorithms of Safe RLHF as pure functions on tensors.

Ragged per-token tensors are flat: the R response tokens of N sequences one after the other, with `lengths` [N].
"""
