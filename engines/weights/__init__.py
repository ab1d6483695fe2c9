"""Weights on their way from the learner to the engines.

`base` has the update, its proof and the two halves of a transport, a sender and a receiver; `digest` is what the proof
is made of, and `vllm_transfer` what every transport shares inside vLLM's workers. A transport is one file beside them:
`host` goes through the object store; `gloo`, `nccl` and `ipc` hand `buckets` to a group, each of its own kind, and have
the rest from `collective`.
"""
