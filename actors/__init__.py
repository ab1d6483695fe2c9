"""Ray actors: rollout workers, signals, reference, learner, multipliers, and the groups that hold them."""
