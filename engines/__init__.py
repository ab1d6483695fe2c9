"""The vLLM and DeepSpeed engines, and the weights between them."""
