"""Data: sources, row schemas, tokenising, the prompt stream, and the synthetic corpus."""
