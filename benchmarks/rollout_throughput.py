"""Tokens per second of one rollout worker against bare vLLM on the same prompts: prints both and their ratio.

`python -m benchmarks.rollout_throughput runs/demo` takes the SFT policy of a finished run. The two take turns in the
same actor process, so that a drifting machine hurts both alike; the ratio is the median over the pairs of turns.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, cast

import ray

from actors.cluster import cluster
from actors.group import actor_options, get
from castor.config.load import load_config
from castor.config.rollout import Rollout
from castor.data.rows.load import load_prompts
from castor.data.sources.report import RowReport
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from engines.vllm_arguments import VLLM_ENV


@ray.remote
class Both:
    """A rollout worker's engine, and the same engine called as plain vLLM."""

    def __init__(self, model: str, rollout: Rollout) -> None:
        import torch

        torch.set_num_threads(1)
        from engines.vllm_engine import InprocEngine, make_engine

        self.rollout, self.template = rollout, PromptTemplate(load_tokenizer(model))
        engine = make_engine(model, rollout, rollout.max_prompt_tokens + rollout.max_new_tokens, False)
        if not isinstance(engine, InprocEngine):
            raise SystemExit(
                "the run samples with the engine async, and bare vLLM here runs in this process: "
                "set rollout.engine to inproc"
            )
        self.engine = engine

    def castor(self, prompts: list[str]) -> float:
        """Tokens per second through the worker's own path: encode, generate with log-probs, pack into experience."""
        from actors.rollout import pack_experience
        from engines.vllm_engine import Request

        start, tokens, chunk = time.perf_counter(), 0, []
        requests = [Request(i, self.template.encode_prompt(p), i) for i, p in enumerate(prompts)]
        for response in self.engine.generate(requests):
            chunk.append(response)
            if len(chunk) == self.rollout.chunk_size:
                tokens += int(pack_experience(chunk, [prompts[r.uid] for r in chunk]).response_lengths.sum())
                chunk = []
        if chunk:
            tokens += int(pack_experience(chunk, [prompts[r.uid] for r in chunk]).response_lengths.sum())
        return tokens / (time.perf_counter() - start)

    def bare(self, prompts: list[str]) -> float:
        """Tokens per second of `LLM.generate` with the same sampling parameters."""
        from engines.vllm_engine import sampling_params

        start = time.perf_counter()
        inputs: list[Any] = [{"prompt_token_ids": self.template.encode_prompt(p)} for p in prompts]
        parameters = [sampling_params(self.rollout, i) for i in range(len(prompts))]
        outputs = self.engine.run(self.engine.llm.generate, inputs, parameters, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    config = load_config(args.run / "config.yaml")
    (rollout, *_) = (run.rollout for run in config.rlhf.values())
    (source, *_) = (run.prompts for run in config.rlhf.values())
    prompts = load_prompts(source, RowReport())[: args.prompts]
    with cluster(config.ray):
        actor = (
            cast(Any, Both)
            .options(**actor_options(rollout.resources, "bench", **VLLM_ENV))
            .remote(str(args.run / "sft"), rollout)
        )
        get([actor.castor.remote(prompts), actor.bare.remote(prompts)], 900, "warm-up")
        pairs = [
            get([actor.castor.remote(prompts), actor.bare.remote(prompts)], 600, "a turn") for _ in range(args.turns)
        ]
    castor, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(
        f"rollout worker {castor:,.0f} tok/s   bare vLLM {bare:,.0f} tok/s   ratio {ratio:.3f} (median of {args.turns})"
    )


if __name__ == "__main__":
    main()
