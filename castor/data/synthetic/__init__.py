"""The synthetic corpus: a small language world in which harm and helpfulness of every text are known by construction.

grammar: the topics, objects and steps. prompts: every prompt, its meaning and its split. responses: template responses
of each kind. judge: the gold judge, from the text alone. annotator: noisy preference rows. corpus: the generators.
"""
