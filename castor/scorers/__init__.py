"""Judges of texts that are no model of ours: a function of the user's own, a remote scorer."""
