"""The supervised stages on Ray Train with DeepSpeed."""
