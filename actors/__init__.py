"""Ray actors: rollout workers, signals, reference, learner, multipliers, and the groups that hold them."""

import time

# Seconds since the epoch; what a process that Ray started did before it is Ray's part of its start.
BEGAN = time.time()
