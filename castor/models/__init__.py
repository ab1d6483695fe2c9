"""Policies and score models on any transformers backbone."""
