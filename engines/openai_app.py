"""vLLM's OpenAI-compatible app around an engine of this process's own."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.weights.base import WeightUpdate


async def start_openai_app(engine_arguments: dict[str, Any], chat_template: str | None) -> tuple[Any, Any]:
    """Start an AsyncLLM; returns it and vLLM's FastAPI app around it, once the engine has sampled a token.

    The app answers every malformed body with 400 in OpenAI's error shape.

    Args:
        engine_arguments: of vLLM's AsyncEngineArgs.
        chat_template: Jinja of `/v1/chat/completions`; None: the tokenizer's own.

    """
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from engines.request_bodies import JSONBodies
    from engines.weights.vllm_transfer import BACKEND, WorkerExtension

    options = AsyncEngineArgs(
        **engine_arguments,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
    )
    frontend = FrontendArgs(chat_template=chat_template, middleware=[f"{JSONBodies.__module__}.{JSONBodies.__name__}"])
    args = argparse.Namespace(**(vars(frontend) | vars(options)))
    engine = AsyncLLM.from_engine_args(options)
    await sample_one(engine, "warm-up")
    tasks = await engine.get_supported_tasks()
    app = build_app(args, supported_tasks=tasks, model_config=engine.model_config)
    await init_app_state(engine, app.state, args, supported_tasks=tasks)
    # vLLM's launcher stops its web server through this when the engine dies; here a health check reports it
    app.state.server = SimpleNamespace(should_exit=False)
    return engine, app


async def sample_one(engine: Any, request_id: str) -> None:
    """Sample one token: what the kernels cannot run, or an engine that hangs, shows only so."""
    from vllm import SamplingParams

    async for _ in engine.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), request_id):
        pass


async def load_folder(engine: Any, update: WeightUpdate) -> None:
    """Load an update that lies in files. Responses under way are finished before; the engine then stands still, and is
    to be resumed by whoever asked.

    Raises RuntimeError unless every worker proves that it holds these very weights.
    """
    await engine.pause_generation(mode="wait", clear_cache=True)
    await engine.collective_rpc("start_weight_update")
    for path in update.pieces:
        info = {"transport": update.transport, "piece": path}
        await engine.collective_rpc("update_weights", kwargs={"update_info": info})
    await engine.collective_rpc("finish_weight_update")
    for digest in await engine.collective_rpc("loaded_digest"):
        update.check((update.version, digest))
