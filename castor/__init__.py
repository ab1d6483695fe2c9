"""Castor: Safe RLHF for large language models on a Ray cluster.

Nothing below this package (the command line excepted) imports ray, vllm or deepspeed.
"""

__version__ = "0.1.0"
