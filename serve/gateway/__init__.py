"""The guarded gateway: one OpenAI-compatible door in front of the policies and their judges."""
