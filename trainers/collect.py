"""Preference data from a policy: several responses to each prompt, paired and labelled."""

from __future__ import annotations

import random
from typing import Any

from actors.jobs import request_seed
from actors.reservation import reserve
from actors.rollout import PromptRequest
from actors.rollout_pool import RolloutPool
from castor.config.collect import Collect
from castor.data.rows.load import load_prompts
from castor.io.errors import CastorError
from castor.io.files import read_json, write_json, write_jsonl
from castor.labelling.label_queue import LABELS, read_labelled, unlabelled_pairs
from castor.labelling.language_model import annotate
from castor.labelling.simulated import sampled_pairs
from castor.synthetic.prompts import find_prompt
from trainers.prompts import fitting_prompts
from trainers.stage_run import StageRun

Responses = list[tuple[str, list[str]]]  # prompts, each with the policy's responses


def run_collect(run: StageRun) -> str:
    """Write pairs of the policy's responses, labelled by the stage's annotator.

    Raises CastorError when the simulated annotator is given prompts of others, and, with annotator `queue`, until
    someone has labelled the pairs.
    """
    stage: Collect = run.section
    if stage.annotator == "queue":
        return _from_queue(run, stage)
    sampled = _sample(run, stage)
    if stage.annotator == "simulated":
        rng = random.Random(f"{run.seed} collect")
        rows = [
            row
            for prompt, responses in sampled
            for row in sampled_pairs(prompt, responses, rng, stage.prompts.synthetic, stage.pairs_per_prompt)
        ]
    else:
        with run.terminal.bar(run.name) as bar:
            rows = annotate(
                stage.annotator, _unlabelled(run, stage, sampled), lambda i, n: bar.update(i, n, "verdicts")
            )
    write_jsonl(run.files.rows, rows)
    responses_count = sum(len(responses) for _, responses in sampled)
    return f"{len(rows):,} pairs from {responses_count:,} responses to {len(sampled):,} prompts"


def _from_queue(run: StageRun, stage: Collect) -> str:
    """The rows a person has labelled; what is to be labelled is sampled once, for as long as its inputs stay."""
    queue, labelled, marker = run.files.queue, run.files.labelled, run.files.queue_key
    if run.claim.fresh or not marker.is_file() or read_json(marker) != run.claim.inputs.key:
        marker.unlink(missing_ok=True)
        write_jsonl(queue, _unlabelled(run, stage, _sample(run, stage)))
        write_json(marker, run.claim.inputs.key)
    if not labelled.is_file():
        raise CastorError(
            f"{run.name}: the pairs in {queue} wait for labels: fill in {', '.join(LABELS[:-1])} and {LABELS[-1]}, "
            f"save them as {labelled} and run the same command again"
        )
    rows, waiting = read_labelled(labelled, queue)
    write_jsonl(run.files.rows, rows)
    return f"{len(rows):,} labelled pairs, {waiting:,} of the queue without a label"


def _unlabelled(run: StageRun, stage: Collect, sampled: Responses) -> list[dict[str, Any]]:
    rng = random.Random(f"{run.seed} queue")
    pairs = [unlabelled_pairs(prompt, responses, rng, stage.pairs_per_prompt) for prompt, responses in sampled]
    return [row for rows in pairs for row in rows]


def _sample(run: StageRun, stage: Collect) -> Responses:
    prompts = run.rows.load([stage.prompts], load_prompts)[stage.skip :]
    if not prompts:
        raise CastorError(
            f"{run.name}: the first {stage.skip} prompts, all there are, are passed over: give more prompts"
        )
    if stage.annotator == "simulated":
        _require_synthetic(run.name, prompts)
    policy = run.models["policy"]
    fitting = fitting_prompts(run, prompts, policy, stage.rollout)
    count = stage.samples_per_prompt
    requests = [
        PromptRequest(i * count + k, prompt, request_seed(run.seed, "collect", i, k))
        for i, prompt in enumerate(fitting)
        for k in range(count)
    ]
    answers: dict[int, str] = {}
    with run.terminal.bar(run.name) as bar, reserve(run.bundles, run.name, run.profile) as reservation:
        run.beginning.lap("data")
        pool = RolloutPool(policy, stage.rollout, reservation, beginning=run.beginning)
        try:
            pool.wait_ready()
            run.beginning.lap("actors")
            for chunk in pool.generate(requests, decode=True):
                assert chunk.info.texts is not None
                answers |= zip(chunk.info.uids, chunk.info.texts, strict=True)
                bar.update(len(answers), len(requests), "responses")
        finally:
            pool.stop()
    return [(prompt.text, [answers[i * count + k] for k in range(count)]) for i, prompt in enumerate(fitting)]


def _require_synthetic(name: str, prompts: list[str]) -> None:
    foreign = next((prompt for prompt in prompts if find_prompt(prompt) is None), None)
    if foreign is not None:
        raise CastorError(
            f"{name}: the simulated annotator can only judge the synthetic corpus, and {foreign[:60]!r} is not of it: "
            "set collect.annotator to queue or to a language model, or give labelled preference rows to reward and "
            "cost instead and leave the collect section out"
        )
