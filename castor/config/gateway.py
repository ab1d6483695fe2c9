"""The HTTP side of serving: where it listens, who may ask, how much, and what is written down."""

from typing import Literal

from pydantic import Field

from castor.config.base import LocalPath, Section
from castor.config.replicas import Replicated

Route = Literal["/tokenize", "/detokenize", "/v1/responses", "/v1/messages"]


class Audit(Section):
    """The log of withheld answers and of judges that failed: one JSON object a line."""

    file: LocalPath | None = Field(None, description="default: audit.jsonl beside the run's serve log; no run: none")
    texts: bool = Field(False, description="write questions and answers; else their keyed hashes and lengths alone")
    max_mib: float = Field(64.0, gt=0, description="a file of this size is set aside, and a new one begun")
    files: int = Field(8, ge=1, description="files that are kept, the oldest go first")


class Limits(Section):
    """What one request may ask for."""

    body_kib: int = Field(1024, ge=1, description="of a request's body, KiB")
    max_tokens: int | None = Field(
        None, ge=1, description="longest answer in tokens: who asks for more gets so many; default: the context"
    )
    n: int = Field(16, ge=1, description="answers of one request")
    seconds: float = Field(600.0, gt=0, description="longest time for one request")


class Gateway(Replicated):
    """The front door of all policies and judges. Its replicas share one address, and places and rates among them."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface, which needs keys")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    target_ongoing_requests: float = Field(
        128, gt=0, description="requests at work or waiting in one replica that more are started beyond"
    )
    keys: LocalPath | None = Field(
        None, description="file of API keys (castor serve keys); without one everybody who reaches the port may ask"
    )
    keys_env: str | None = Field(None, description="environment variable that holds what such a file would")
    page: bool = Field(True, description="serve the page at /")
    votes: LocalPath | None = Field(
        None, description="file of arena votes; default: votes.jsonl in the run; no run: none"
    )
    routes: list[Route] = Field(
        default_factory=list, description="further routes of vLLM's app to offer, of policies without a guard"
    )
    max_running: int = Field(256, ge=1, description="requests at work at a time; more wait")
    max_waiting: int = Field(256, ge=0, description="requests that wait; more are refused with 429")
    max_wait_s: float = Field(60.0, gt=0, description="longest wait for a place, then 429")
    limits: Limits = Field(default_factory=Limits, description="of one request")
    audit: Audit = Field(default_factory=Audit, description="log of withheld answers")
