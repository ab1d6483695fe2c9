"""Parts that compare two ways to the same numbers: digests, scores, log-probabilities, attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu_check import models
from benchmarks.gpu_check.setting import GIB, Figures, Setting, close


def digests(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """The digest of weights on the card is that of the same weights on the CPU; its rate, and that of a copy."""
    from engines.weights.digest import Digest

    for dtype in (torch.bfloat16, torch.float32):
        count = 1 << (16 if setting.small else 28)
        tensor = torch.randn(count, device=setting.device, dtype=torch.float32).to(dtype)

        def digest(where: torch.Tensor) -> str:
            found = Digest()
            for _ in found.adding([("weight", where)]):
                pass
            return found.over(None)

        if digest(tensor) != digest(tensor.cpu()):
            raise RuntimeError(f"the digest of {dtype} weights is another on {setting.device} than on the CPU")
        copy = torch.empty_like(tensor)
        rate = tensor.nbytes / GIB / setting.seconds(partial(digest, tensor))
        copied = tensor.nbytes / GIB / setting.seconds(partial(copy.copy_, tensor))
        yield str(dtype).removeprefix("torch."), {"GiB/s": rate, "GiB/s of a copy": copied}


def scores(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """A score model in bfloat16 on the card against the same weights in float32 on the CPU."""
    name = models.TINY if setting.small else "0.1B"
    sequences, length, pack = (6, 16, 48) if setting.small else (8, 128, 512)
    dtype = torch.float32 if setting.small else torch.bfloat16
    exact = models.critic(name, dtype, torch.device("cpu")).eval()
    on_card = models.critic(name, dtype, setting.device).eval()
    on_card.load_state_dict(exact.state_dict())
    exact = exact.float()
    with torch.no_grad():
        here = models.batch(name, sequences, length, pack, setting.device)
        there = models.batch(name, sequences, length, pack, torch.device("cpu"))
        wanted, found = exact(there.rows, there.positions), on_card(here.rows, here.positions).cpu()
        bound = 1e-5 if setting.small else 0.1 * float(wanted.abs().max())
        figures: Figures = {"largest difference": close(found, wanted, bound)}
        figures["tokens/s"] = here.tokens / setting.seconds(lambda: on_card(here.rows, here.positions))
    yield name, figures


def logprobs(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """Log-probabilities in chunks against all at once, forward and backward: equal, time, and peak memory."""
    from castor.algorithms.logprobs import chunked_logprobs, token_logprobs

    tokens, hidden, vocabulary = (64, 16, 97) if setting.small else (8192, 4096, 128_256)
    dtype = torch.float32 if setting.small else torch.bfloat16
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device=setting.device, dtype=dtype) / hidden**0.5
    head = torch.nn.Linear(hidden, vocabulary, bias=False, device=setting.device, dtype=dtype)
    torch.nn.init.normal_(head.weight)
    targets = torch.randint(vocabulary, (tokens,), device=setting.device)

    def plain() -> torch.Tensor:
        return token_logprobs(head(states), targets)

    def chunked() -> torch.Tensor:
        return chunked_logprobs(head, states, targets, chunk=16 if setting.small else 1024)

    ways: dict[str, Callable[[], torch.Tensor]] = {"at once": plain, "in chunks": chunked}
    for name, way in ways.items():

        def both(way: Callable[[], torch.Tensor] = way) -> None:
            head.weight.grad = None
            way().sum().backward()

        seconds = setting.seconds(both)
        peak = setting.peak_bytes(both)
        figures: Figures = {"tokens/s": tokens / seconds}
        if peak is not None:
            figures["peak GiB"] = peak / GIB
        if way is not plain:
            figures["largest difference"] = close(way().detach(), plain().detach(), 1e-5 if setting.small else 0.05)
        yield name, figures


def attention(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """Packed rows through the varlen kernel, where the card has one, against those with a mask."""
    from castor.models.attention import place

    name = models.TINY if setting.small else "1B"
    dtype = torch.float32 if setting.small else torch.bfloat16
    masked = models.policy(name, dtype, setting.device).eval()
    placed = place(models.policy(name, dtype, setting.device), setting.device).eval()
    placed.load_state_dict(masked.state_dict())
    for pack in (48,) if setting.small else (512, 2048, 4096):
        batch = models.batch(name, 8 if setting.small else 32, 16 if setting.small else 256, pack, setting.device)
        with torch.no_grad():
            wanted, found = masked(batch.rows, batch.positions), placed(batch.rows, batch.positions)
            figures: Figures = {"rows": placed.packing}
            figures["largest difference"] = close(found, wanted, 1e-5 if setting.small else 0.5)
        slow, fast = (setting.seconds(partial(backward, model, batch)) for model in (masked, placed))
        figures |= {"tokens/s": batch.tokens / fast, "times as fast as masked": slow / fast}
        yield f"{name}, rows of {pack}", figures


def backward(model: torch.nn.Module, batch: models.Batch) -> None:
    """A forward and a backward pass."""
    model.zero_grad()
    model(batch.rows, batch.positions).sum().backward()
