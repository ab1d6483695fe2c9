"""Scores from a remote scorer. An error never becomes a number: after the last retry it is an exception."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from castor.config.judge import HTTPScorer
from castor.io.errors import CastorError, Unreachable

log = logging.getLogger(__name__)
LONGEST_WAIT_S = 30.0
_SHOWN = 200  # characters of a refusal that the error repeats
_ADVICE = {
    400: "see what it says of the request",
    401: "put the key in an environment variable and name it in http.headers_env",
    403: "put the key in an environment variable and name it in http.headers_env",
    404: "correct http.url (of `castor serve` it ends in /v1/score)",
    405: "correct http.url (of `castor serve` it ends in /v1/score)",
    413: "lower http.batch_size",
    422: "the scorer does not take these texts, or so many at a time: lower http.batch_size, or see what it says",
}


class RemoteScorer:
    """Speaks the format of `castor serve`'s /v1/score.

    Request: {"items": [{"prompt": TEXT, "response": TEXT}, ...]}. Reply: {"scores": [{FIELD: NUMBER, ...}, ...]}, in
    the order of the items; other keys are ignored.
    """

    def __init__(self, config: HTTPScorer, field: str) -> None:
        """`field` is the key of the number in each score. Raises CastorError when a header's variable is not set."""
        self.config, self.field = config, field
        self.options: dict[str, Any] = {
            "headers": _headers(config),
            "timeout": config.timeout_s,
            "verify": httpx.create_ssl_context(),
        }
        self.idle: list[httpx.Client] = []

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One number a response, from batches of which `concurrency` are under way at a time.

        Raises CastorError, naming the URL, when the scorer cannot be reached, refuses, or gives anything but one finite
        number for each response.
        """
        items = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
        size = self.config.batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(self._score, batch) for batch in batches]
            try:
                return [score for future in futures for score in future.result()]
            finally:
                for future in futures:
                    future.cancel()  # after a failure nothing more is asked

    def _score(self, batch: list[dict[str, str]]) -> list[float]:
        reply = self._post(batch)
        try:
            scores = reply.json()["scores"]
            numbers = [score[self.field] for score in scores]
        except (ValueError, KeyError, TypeError, IndexError):
            raise CastorError(
                f"{self.config.url} replied with {reply.text[:_SHOWN]!r}, not with "
                f'{{"scores": [{{"{self.field}": NUMBER}}, ...]}}: correct http.url or http.field'
            ) from None
        if len(numbers) != len(batch):
            raise CastorError(
                f"{self.config.url} gave {len(numbers)} scores for {len(batch)} responses (the first one to the prompt "
                f"{batch[0]['prompt'][:_SHOWN]!r}): it must give one for each, in their order"
            )
        return [self._number(number, item["prompt"]) for number, item in zip(numbers, batch, strict=True)]

    def _number(self, number: Any, prompt: str) -> float:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise CastorError(
                f"{self.config.url} gave {number!r} as the {self.field} of a response to the prompt "
                f"{prompt[:_SHOWN]!r}: a score must be a finite number"
            )
        return float(number)

    def _post(self, batch: list[dict[str, str]]) -> httpx.Response:
        """The reply of status 2xx. Retries what may pass: timeouts, lost connections, 429 and 5xx."""
        config, problem = self.config, ""
        for attempt in range(config.retries + 1):
            if attempt:
                wait = min(LONGEST_WAIT_S, config.retry_wait_s * 2 ** (attempt - 1))
                log.warning("the scorer at %s %s: asked again in %.1f s", config.url, problem, wait)
                time.sleep(wait)
            try:
                with self._client() as client:
                    reply = client.post(config.url, json={"items": batch})
            except httpx.TimeoutException:
                problem = f"gave no reply within {config.timeout_s:g} s"
                continue
            except httpx.TransportError as error:
                problem = f"cannot be reached ({str(error) or type(error).__name__})"
                continue
            if reply.is_success:
                return reply
            told = f"HTTP {reply.status_code} {reply.text[:_SHOWN]!r}"
            if reply.status_code != 429 and reply.status_code < 500:
                advice = _ADVICE.get(reply.status_code, "correct http.url")
                raise CastorError(f"the scorer at {config.url} refused with {told}: {advice}")
            problem = f"answered {told}"
        raise Unreachable(
            f"the scorer at {config.url} {problem}, {config.retries + 1} times: look at the scorer; if it is only slow "
            "or busy, raise http.timeout_s or http.retries, or lower http.concurrency"
        )

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        """A client that no other thread has meanwhile: httpcore's pool may close a connection that it has just given to
        another thread (encode/httpcore, issue 1110).
        """
        try:
            client = self.idle.pop()
        except IndexError:
            client = httpx.Client(**self.options)
        try:
            yield client
        finally:
            self.idle.append(client)


def _headers(config: HTTPScorer) -> dict[str, str]:
    missing = [variable for variable in config.headers_env.values() if not os.environ.get(variable)]
    if missing:
        raise CastorError(
            f"http.headers_env names the environment variable {missing[0]}, which is not set where {config.url} is "
            "asked from: set it before Ray starts on the nodes"
        )
    return {header: os.environ[variable] for header, variable in config.headers_env.items()}
