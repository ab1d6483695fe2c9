"""Data: sources, rows, tokens, and what a source holds."""
