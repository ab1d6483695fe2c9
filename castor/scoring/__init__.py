"""Judges of finished responses: models, functions, HTTP, language models, keywords."""
