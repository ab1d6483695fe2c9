"""A reward in plain Python, without anything to import: for Castor's signal and for TRL's reward function."""

from __future__ import annotations


def share_of_b(prompts: list[str], responses: list[str]) -> list[float]:
    """Share of a response's words that begin with b."""
    return [sum(word.startswith("b") for word in text.split()) / max(len(text.split()), 1) for text in responses]
