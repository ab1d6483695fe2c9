"""The policy on Ray Serve: vLLM's own OpenAI app around an engine that this replica holds."""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from serve.replicas import deployment_options
from serve.targets import Targets

ENGINE_STOP_S = 1.0  # no request is in flight any more when the engine's process is asked to end


class PolicyServer:
    """One replica. `/v1/models`, `/v1/completions`, `/v1/chat/completions` and the other routes are vLLM's."""

    def __init__(self, targets: Targets, config: Serve) -> None:
        import torch

        from engines.vllm_arguments import VLLM_ENV

        os.environ.update(VLLM_ENV)  # before vLLM and transformers are imported; the engine's process inherits it
        torch.set_num_threads(config.resources.threads)  # vLLM turns later calls into no-ops
        self.targets, self.config = targets, config

    async def __serve_build_asgi_app__(self) -> Any:
        """Start the engine and return vLLM's FastAPI app around it. Called by Serve once, in the replica's loop."""
        from castor.data.tokens.chat_template import chat_template
        from castor.data.tokens.template import PromptTemplate, load_tokenizer
        from engines.openai_app import start_openai_app
        from engines.vllm_arguments import engine_arguments

        targets, policy = self.targets, self.targets.policy
        arguments = engine_arguments(str(policy.local()), self.config, targets.max_model_len, policy.trust_remote_code)
        template = chat_template(PromptTemplate(load_tokenizer(policy), targets.template))
        self.engine, app = await start_openai_app(arguments | {"served_model_name": [targets.name]}, template)
        return app

    async def check_health(self) -> None:
        """Raises when the engine has died: Serve then replaces the replica."""
        await self.engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "engine"):  # absent when the engine could not be started
            self.engine.shutdown(timeout=ENGINE_STOP_S)


def policy_app(targets: Targets, config: Serve) -> Application:
    """The Serve application that answers for the policy under the name of its stage."""
    options = deployment_options("policy", config.replicas, config.resources)
    deployment = serve.deployment(max_ongoing_requests=config.max_ongoing_requests, **options)
    return deployment(serve.ingress()(PolicyServer)).bind(targets, config)
