"""A policy on Ray Serve: vLLM's own OpenAI app around an engine that this replica holds, called by the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing

from ray import serve
from ray.serve import Application

from castor.config.serve import Serve
from engines.vllm_arguments import VLLM_ENV
from serve.asgi import Head, call
from serve.parts import END, Address, Opening, Outbox
from serve.replicas import deployment_options
from serve.targets import Target
from serve.versions import Version, Versions

log = logging.getLogger("ray.serve")
ENGINE_STOP_S = 1.0  # no request is in flight any more when the engine's process is asked to end
WATCH_S = 0.5
LAST_WORDS_S = 1.0  # for an error to reach whoever asked
PAUSE_S = 0.025  # between two parts of a stream, for each other stream
HEALTH_S = 60.0  # an engine with nothing to do that samples no token in this time is taken for dead


class PolicyServer:
    """One replica."""

    async def __init__(self, target: Target, config: Serve) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine; with the weights of an update of this policy, if there was one."""
        import torch

        options = config.policy(target.name)
        torch.set_num_threads(options.resources.threads)  # vLLM turns later calls into no-ops
        from castor.data.tokens.chat_template import chat_template
        from castor.data.tokens.template import PromptTemplate, load_tokenizer
        from engines.openai_app import start_openai_app
        from engines.vllm_arguments import engine_arguments
        from engines.vllm_registry import import_model_class

        self.target, self.answered, self.streams = target, 0, 0
        self.longest_pause = options.longest_pause_s
        self.updating, self.outbox = asyncio.Lock(), Outbox()
        model = target.model
        import_model_class(str(model.local()))
        arguments = engine_arguments(str(model.local()), options, target.max_model_len, model.trust_remote_code)
        template = chat_template(PromptTemplate(load_tokenizer(model), target.template))
        self.engine, self.app = await start_openai_app(arguments | {"served_model_name": [target.name]}, template)
        self.version = Version(0, str(model), None)
        await self.refresh()
        self.watch = asyncio.create_task(self._end_with_the_engine())

    async def stream(self, path: str, body: bytes, to: Address) -> None:
        """POST a body to vLLM's app, and send what it answers where it is expected, as it comes: an `Opening`, then the
        body. Raises ConnectionError when the gateway cannot be reached.
        """
        self.streams += 1
        try:
            head: Head | None = None
            async with aclosing(call(self.app, path, body, self._pause)) as items:
                async for item in items:
                    self.answered += 1
                    if isinstance(item, Head):
                        head = item
                        continue
                    if head is not None:
                        await self._open(head, to)
                        head = None
                    await self.outbox.send(to, item)
            if head is not None:
                await self._open(head, to)
            await self.outbox.send(to, END)
        finally:
            self.streams -= 1

    async def _open(self, head: Head, to: Address) -> None:
        """Not before the first part: which weights answer is known only now, as the request may have waited for new
        ones.
        """
        await self.outbox.send(to, Opening(head, self.version.name(self.target.name)).to_bytes())

    def _pause(self) -> float:
        """Seconds between parts of a stream: every part costs processor time on its way to the client, and the more
        streams there are, the later a reader would notice."""
        return min(PAUSE_S * (self.streams - 1), self.longest_pause)

    async def answer(self, path: str, body: bytes) -> tuple[Head, str, bytes]:
        """The same, in one piece."""
        parts: list[bytes] = []
        head: Head | None = None
        async for item in call(self.app, path, body):
            if isinstance(item, Head):
                head = item
            else:
                parts.append(item)
        self.answered += 1
        assert head is not None
        return head, self.version.name(self.target.name), b"".join(parts)

    async def ready(self) -> None:
        """Sample a token. Raises when the engine cannot; while it takes new weights over, it need not."""
        if self.updating.locked():
            return
        from engines.openai_app import sample_one

        await sample_one(self.engine, f"ready-{os.urandom(8).hex()}")

    async def describe(self) -> tuple[Target, Version]:
        """What this policy is, and which weights it has."""
        return self.target, self.version

    async def refresh(self) -> Version:
        """Take over the newest version of this policy, proven; requests wait meanwhile. Returns what is loaded.

        A replica that could not, which holds neither the former weights nor the new ones, ends after it has said so.
        """
        async with self.updating:
            versions = Versions(self.target.versions)
            wanted = versions.of(self.target.name)
            if wanted is not None and wanted.number != self.version.number:
                from engines.openai_app import load_folder

                try:
                    async with versions.turn():  # while one replica loads, the others answer
                        await load_folder(self.engine, wanted.update())
                        self.version = wanted  # before a token is sampled from it
                        await self.engine.resume_generation()
                except Exception:
                    log.exception("policy %s did not take its new weights over: this replica ends", self.target.name)
                    asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, 1)
                    raise
            return self.version

    async def _end_with_the_engine(self) -> None:
        """A replica whose engine has died is of no use. Serve notices the death of a process at once."""
        while not self.engine.errored:
            await asyncio.sleep(WATCH_S)
        log.error("the engine of policy %s has died: this replica ends, and is replaced", self.target.name)
        os._exit(1)

    async def check_health(self) -> None:
        """Raises when the engine has died, or samples nothing any more: Serve then replaces the replica."""
        await self.engine.check_health()
        before, self.answered = self.answered, 0
        if not before and not self.updating.locked():  # what was answered since the last check shows as much
            await asyncio.wait_for(self.ready(), HEALTH_S)

    def __del__(self) -> None:
        if hasattr(self, "watch"):
            self.watch.cancel()
        if hasattr(self, "engine"):  # absent when the engine could not be started
            self.engine.shutdown(timeout=ENGINE_STOP_S)


def deployment_of(name: str) -> str:
    """Name of the deployment of a policy."""
    return "policy-" + name.replace("/", "-")


def policy_app(target: Target, config: Serve) -> Application:
    """The deployment of a policy."""
    options = deployment_options(deployment_of(target.name), config.policy(target.name), **VLLM_ENV)
    return serve.deployment(**options)(PolicyServer).bind(target, config)
