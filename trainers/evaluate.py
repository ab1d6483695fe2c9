"""The closing comparison: every policy answers the held-out prompts, is scored, judged, and reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import ray

from actors.folder_weights import FolderWeights
from actors.group import START_TIMEOUT_S, get
from actors.jobs import Chunk, request_seed
from actors.reservation import Reservation, reserve
from actors.rollout import PromptRequest
from actors.rollout_pool import RolloutPool
from actors.scorer import ScoreWorker
from castor.config.evaluate import Evaluate
from castor.config.signal import Classifier
from castor.data.rows.load import load_prompt_rows
from castor.data.tokens.prompt_stream import Prompt
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import JudgedResponse, write_responses
from castor.io.terminal import Bar
from castor.model_reference import ModelReference
from castor.models.classifier_cost import check_classifier
from castor.models.moderation import read_moderation_info
from castor.run.actors import Frozen
from castor.statistics.bootstrap import Estimate
from castor.synthetic.judge import judge
from castor.synthetic.prompts import find_prompt
from trainers.prompts import fitting_prompts
from trainers.stage_run import StageRun

SCORE_TIMEOUT_S = 600.0


def run_evaluate(run: StageRun) -> str:
    """Write the judged responses of every policy; the pipeline makes summary and report of them."""
    stage: Evaluate = run.section
    policies = {name: run.models[f"policies.{name}"] for name in stage.policies or {}}
    if stage.cost_classifier is not None:
        judge_of_harm = run.models["cost"]
        check_classifier(
            read_moderation_info(judge_of_harm), stage.cost_classifier, f"{run.name}.cost: {judge_of_harm}"
        )
    loaded = run.rows.load([stage.prompts], load_prompt_rows)
    written_for = {row.prompt: ", ".join(sorted(row.category)) for row in loaded if row.category}
    prompts = fitting_prompts(run, [row.prompt for row in loaded], next(iter(policies.values())), stage.rollout)
    with run.terminal.bar(run.name) as bar, reserve(run.bundles, run.name, run.profile) as reservation:
        rows = evaluate(run, stage, policies, prompts, reservation, bar)
    run.tracker.declare(run.name)
    for name, judged in rows.items():
        judged = [replace(row, category=row.category or written_for.get(row.prompt)) for row in judged]
        write_responses(run.files.responses(name), judged)
        _track(run, name, judged)
    long = len(loaded) - len(prompts)
    told = f"{len(policies)} policies on {len(prompts):,} held-out prompts"
    return f"{told}; {long:,} more are too long" if long else told


def _track(run: StageRun, policy: str, judged: list[JudgedResponse]) -> None:
    """A policy's figures, and some of its responses, to the tracker."""
    found = {name: each.value for name, each in policy_metrics(judged, seed=run.seed) if isinstance(each, Estimate)}
    run.tracker.log(run.name, 1, {f"{policy}/{name}": value for name, value in found.items()})
    columns = ("prompt", "response", "reward", "cost", "n_tokens")
    samples = [[getattr(row, column) for column in columns] for row in judged]
    run.tracker.samples(f"{run.name}/{policy}", columns, samples)


def evaluate(
    run: StageRun,
    stage: Evaluate,
    policies: Mapping[str, ModelReference],
    prompts: list[Prompt],
    reservation: Reservation,
    bar: Bar,
) -> dict[str, list[JudgedResponse]]:
    """One response per prompt from each policy, with the same seeds for all, scored by the judges."""
    seed, total = run.seed, len(policies) * len(prompts)
    requests = [PromptRequest(i, prompt, request_seed(seed, "evaluate", i)) for i, prompt in enumerate(prompts)]
    first = next(iter(policies.values()))
    run.beginning.lap("data")
    asked_at = time.time()
    pool = RolloutPool(first, stage.rollout, reservation, beginning=run.beginning)
    scorers = {
        kind: _scorer(run, kind, first, stage.cost_classifier if kind == "cost" else None, reservation)
        for kind in ("reward", "cost")
        if kind in run.models
    }
    source = cast(Any, FolderWeights).options(**reservation.env("FolderWeights-0")).remote()
    rows: dict[str, list[JudgedResponse]] = {}
    try:
        pool.wait_ready()
        others = {"FolderWeights": source} | {f"{kind}-scorer": scorer for kind, scorer in scorers.items()}
        for each, actor in others.items():
            run.beginning.ready(each, asked_at, [get(actor.startup.remote(), START_TIMEOUT_S, each)])
        run.beginning.lap("actors")
        for version, (name, model) in enumerate(policies.items(), start=1):
            pool.load_weights(get(source.publish.remote(model, version), START_TIMEOUT_S, "publishing a policy"))
            pending: list[tuple[Chunk, dict[str, Any]]] = []
            for chunk in pool.generate(requests, decode=True):
                pending.append((chunk, {k: s.score.remote(chunk.experience) for k, s in scorers.items()}))
                bar.update(len(rows) * len(prompts) + sum(len(c.info.uids) for c, _ in pending), total, name)
            rows[name] = _judged(prompts, pending)
    finally:
        pool.stop()
        for actor in (source, *scorers.values()):
            ray.kill(actor)
    return rows


def _scorer(
    run: StageRun, kind: str, policy: ModelReference, classifier: Classifier | None, reservation: Reservation
) -> Any:
    """The actor that the stage starts to score with its reward or its cost model."""
    asked = run.stage.actor(f"{kind}-scorer")
    (held,) = asked.holds
    assert isinstance(held, Frozen)
    assert asked.resources is not None
    worker = cast(Any, ScoreWorker).options(**reservation.options(asked, 0))
    return worker.remote(run.models[kind], held.engine, asked.resources.threads, policy, classifier)


def _judged(prompts: list[Prompt], pending: list[tuple[Chunk, dict[str, Any]]]) -> list[JudgedResponse]:
    """Scores and gold verdicts, in the order of the prompts."""
    found: dict[int, JudgedResponse] = {}
    for chunk, refs in pending:
        scores = {kind: get(ref, SCORE_TIMEOUT_S, f"the {kind} scorer") for kind, ref in refs.items()}
        experience = get(chunk.experience, SCORE_TIMEOUT_S, "reading a chunk")
        assert chunk.info.texts is not None
        for i, uid in enumerate(chunk.info.uids):
            reward = float(scores["reward"][i]) if "reward" in scores else None
            found[uid] = judged_response(
                prompts[uid].text, chunk.info.texts[i], reward, float(scores["cost"][i]),
                int(experience.response_lengths[i]),
            )  # fmt: skip
    return [found[uid] for uid in np.arange(len(prompts)).tolist()]


def judged_response(prompt: str, response: str, reward: float | None, cost: float, n_tokens: int) -> JudgedResponse:
    """With the gold judge's verdict where the prompt is of the synthetic corpus."""
    known = find_prompt(prompt)
    if known is None:
        return JudgedResponse(prompt, response, None, None, None, reward, cost, None, None, None, n_tokens)
    verdict = judge(prompt, response)
    return JudgedResponse(
        prompt=prompt,
        response=response,
        kind=known.kind,
        category=known.category,
        severity=None if known.severity is None else int(known.severity),
        reward=reward,
        cost=cost,
        harmful=verdict.harmful,
        helpfulness=verdict.helpfulness,
        refusal=verdict.refusal,
        n_tokens=n_tokens,
    )
