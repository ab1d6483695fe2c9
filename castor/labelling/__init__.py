"""Who labels pairs of responses: a queue for people, a language model, the simulated annotator."""
