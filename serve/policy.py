"""The policy on Ray Serve: vLLM's own OpenAI app around an engine that this replica holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from castor.model_reference import ModelReference
from serve.replicas import deployment_options

ENGINE_STOP_S = 1.0  # no request is in flight any more when the engine's process is asked to end


class PolicyServer:
    """One replica. `/v1/models`, `/v1/completions`, `/v1/chat/completions` and the other routes are vLLM's."""

    def __init__(self, name: str, folder: Path, max_model_len: int, config: Serve) -> None:
        import torch

        from actors.rollout import VLLM_ENV

        os.environ.update(VLLM_ENV)  # before vLLM and transformers are imported; the engine's process inherits it
        torch.set_num_threads(config.resources.threads)  # vLLM turns later calls into no-ops
        self.name, self.folder, self.max_model_len, self.config = name, folder, max_model_len, config

    async def __serve_build_asgi_app__(self) -> Any:
        """Start the engine and return vLLM's FastAPI app around it. Called by Serve once, in the replica's loop."""
        from castor.data.tokens.chat_template import chat_template
        from castor.data.tokens.template import PromptTemplate, load_tokenizer
        from engines.openai_app import start_openai_app

        tokenizer = load_tokenizer(ModelReference(str(self.folder), None, self.config.trust_remote_code))
        template = chat_template(PromptTemplate(tokenizer, self.config.template))
        self.engine, app = await start_openai_app(self._engine_kwargs(), template)
        return app

    async def check_health(self) -> None:
        """Raises when the engine has died: Serve then replaces the replica."""
        await self.engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "engine"):  # absent when the engine could not be started
            self.engine.shutdown(timeout=ENGINE_STOP_S)

    def _engine_kwargs(self) -> dict[str, Any]:
        import torch

        from castor.models.device import resolve_dtype

        config = self.config
        kwargs: dict[str, Any] = {
            "model": str(self.folder),
            "served_model_name": [self.name],
            "dtype": str(resolve_dtype(config.dtype)).removeprefix("torch."),
            "max_model_len": self.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel_size,
            "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else "mp",
            "trust_remote_code": config.trust_remote_code,
            "disable_log_stats": True,
        }
        if torch.cuda.is_available():
            return kwargs | {"gpu_memory_utilization": config.gpu_memory_utilization}
        return kwargs | {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}


def policy_app(name: str, folder: Path, max_model_len: int, config: Serve) -> Application:
    """The Serve application that answers for the policy in `folder` under the model name `name`."""
    options = deployment_options("policy", config.replicas, config.resources)
    deployment = serve.deployment(max_ongoing_requests=config.max_ongoing_requests, **options)
    return deployment(serve.ingress()(PolicyServer)).bind(name, folder, max_model_len, config)
