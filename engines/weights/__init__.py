"""Weights on their way from the learner to the engines.

`base` has the update, its proof and the two halves of a transport, a sender and a receiver; `vllm_transfer` is what
every transport shares inside vLLM's workers. A transport is one file beside them: `host` goes through the object store.
"""
