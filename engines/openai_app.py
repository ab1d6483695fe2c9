"""vLLM's OpenAI-compatible app around an engine of this process's own."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any


async def start_openai_app(engine_arguments: dict[str, Any], chat_template: str | None) -> tuple[Any, Any]:
    """Start an AsyncLLM; returns it and vLLM's FastAPI app around it, once the engine has sampled a token.

    The app answers every malformed body with 400 in OpenAI's error shape.

    Args:
        engine_arguments: of vLLM's AsyncEngineArgs.
        chat_template: Jinja of `/v1/chat/completions`; None: the tokenizer's own.

    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from engines.request_bodies import JSONBodies

    options = AsyncEngineArgs(**engine_arguments)
    frontend = FrontendArgs(chat_template=chat_template, middleware=[f"{JSONBodies.__module__}.{JSONBodies.__name__}"])
    args = argparse.Namespace(**(vars(frontend) | vars(options)))
    engine = AsyncLLM.from_engine_args(options)
    await _warm_up(engine)
    tasks = await engine.get_supported_tasks()
    app = build_app(args, supported_tasks=tasks, model_config=engine.model_config)
    await init_app_state(engine, app.state, args, supported_tasks=tasks)
    # vLLM's launcher stops its web server through this when the engine dies; here a health check reports it
    app.state.server = SimpleNamespace(should_exit=False)
    return engine, app


async def _warm_up(engine: Any) -> None:
    """Sample one token: what the kernels cannot run shows only then, and must not look ready."""
    from vllm import SamplingParams

    async for _ in engine.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), "warm-up"):
        pass
