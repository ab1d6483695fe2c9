"""Scripts that measure, and what only they need."""
