"""Ray Serve: the policy behind an OpenAI-compatible endpoint, the score models behind `/v1/score`."""
