"""What a step of an RLHF run would take: seconds, who waits for whom, and which split of the GPUs is faster."""
