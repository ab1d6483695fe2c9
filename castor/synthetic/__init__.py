"""The synthetic corpus: a small language world in which harm and helpfulness of every text are known by construction.

grammar: the topics, objects and steps. prompts: every prompt, its meaning and its split. responses: template responses
of each kind. edits: a good answer and the same answer with one flaw. question_dependent: responses that only the
question can judge. judge: the gold judge, from the two texts alone. annotator: noisy preference rows. corpus: the
generators.
"""
