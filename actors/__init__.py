"""Ray actors: rollout workers, signals, reference, learner, multipliers, and the groups that hold them."""

import time

BEGAN = (
    time.time()
)  # seconds since the epoch: what was before it in a process that Ray starts is Ray's part of its start
