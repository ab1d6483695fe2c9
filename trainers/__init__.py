"""Drivers: the RLHF loop, the supervised stages on Ray Train, and the pipeline of all stages."""
