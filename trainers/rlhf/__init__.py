"""The RLHF run: the loop, the producer, the groups."""
