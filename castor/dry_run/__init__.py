"""What a config would need: placement, memory, GPUs."""
