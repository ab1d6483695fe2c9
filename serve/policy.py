"""The policy on Ray Serve: vLLM's own OpenAI app around an engine that this replica holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from serve.replicas import deployment_options

if TYPE_CHECKING:  # the driver deploys without importing torch and transformers
    from transformers import PreTrainedTokenizerBase

ENGINE_STOP_S = 1.0  # no request is in flight any more when the engine's process is asked to end


class PolicyServer:
    """One replica. `/v1/models`, `/v1/completions`, `/v1/chat/completions` and the other routes are vLLM's."""

    def __init__(self, name: str, folder: Path, max_model_len: int, config: Serve) -> None:
        import torch

        from engines.vllm_arguments import VLLM_ENV

        os.environ.update(VLLM_ENV)  # before vLLM and transformers are imported; the engine's process inherits it
        torch.set_num_threads(config.resources.threads)  # vLLM turns later calls into no-ops
        self.name, self.folder, self.max_model_len, self.config = name, folder, max_model_len, config

    async def __serve_build_asgi_app__(self) -> Any:
        """Start the engine and return vLLM's FastAPI app around it. Called by Serve once, in the replica's loop."""
        from castor.data.tokens.template import load_tokenizer
        from engines.openai_app import start_openai_app
        from engines.vllm_arguments import engine_arguments

        config = self.config
        arguments = engine_arguments(str(self.folder), config, self.max_model_len, config.trust_remote_code)
        template = chat_template(load_tokenizer(str(self.folder), config.trust_remote_code), config.template)
        self.engine, app = await start_openai_app(arguments | {"served_model_name": [self.name]}, template)
        return app

    async def check_health(self) -> None:
        """Raises when the engine has died: Serve then replaces the replica."""
        await self.engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "engine"):  # absent when the engine could not be started
            self.engine.shutdown(timeout=ENGINE_STOP_S)


def policy_app(name: str, folder: Path, max_model_len: int, config: Serve) -> Application:
    """The Serve application that answers for the policy in `folder` under the model name `name`."""
    options = deployment_options("policy", config.replicas, config.resources)
    deployment = serve.deployment(max_ongoing_requests=config.max_ongoing_requests, **options)
    return deployment(serve.ingress()(PolicyServer)).bind(name, folder, max_model_len, config)


def chat_template(tokenizer: PreTrainedTokenizerBase, kind: str) -> str | None:
    """The Jinja template of `/v1/chat/completions`: None for the tokenizer's own, else PKU's format or the config's.

    It renders a conversation to the text the policy was trained on, as `PromptTemplate.prompt_text`: turns follow each
    other, and an answer is closed by the end-of-text token.
    """
    from castor.config.template import PROMPT
    from castor.data.tokens.template import PromptTemplate

    template = PromptTemplate(tokenizer, kind)
    if template.chat:
        return None
    opening, _, closing = template.turn.partition(PROMPT)
    # what a template renders is tokenised without special tokens, so it writes the begin-of-text token itself
    first = "".join(tokenizer.convert_ids_to_tokens(tokenizer("").input_ids[:1]))
    return (
        _literal(first + template.begin)
        + "{% for message in messages %}"
        + ("{% if message.role == 'user' %}" + _literal(opening) + "{{ message.content }}" + _literal(closing))
        + "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
        + "{% else %}{{ raise_exception('this model knows user and assistant messages only') }}"
        + "{% endif %}{% endfor %}"
    )


def _literal(text: str) -> str:
    """Jinja that renders `text` as it stands, whatever braces it holds."""
    return "{{ " + json.dumps(text) + " }}"
