"""The closing comparison: every policy answers the held-out prompts, is scored, judged, and reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
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
from castor.data.rows.load import load_prompt_rows
from castor.data.tokens.prompt_stream import Prompt
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import JudgedResponse, score_by, write_responses
from castor.experience import Experience
from castor.io.terminal import Bar
from castor.model_reference import ModelReference
from castor.run.stages.evaluate import EvaluateStage, judge_key, scoring_engine
from castor.statistics.bootstrap import Estimate
from castor.synthetic.judge import judge
from castor.synthetic.prompts import find_prompt
from trainers.judges import check_judge
from trainers.prompts import fitting_prompts
from trainers.stage_run import StageRun

SCORE_TIMEOUT_S = 600.0


def run_evaluate(run: StageRun) -> str:
    """Write the judged responses of every policy; the pipeline makes summary and report of them."""
    stage: Evaluate = run.section
    policies = {name: run.models[f"policies.{name}"] for name in stage.policies or {}}
    for name, asked in stage.all_judges.items():
        check_judge(f"{run.name}: judge {name!r}", asked, asked.measures, run.models.get(judge_key(name)))
    loaded = run.rows.load([stage.prompts], load_prompt_rows)
    written_for = {row.prompt: ", ".join(sorted(row.category)) for row in loaded if row.category}
    prompts = fitting_prompts(run, [row.prompt for row in loaded], next(iter(policies.values())), stage.rollout)
    reserving = reserve(run.bundles, run.name, run.profile, run.handover)
    with run.terminal.bar(run.name) as bar, reserving as reservation:
        rows = evaluate(run, stage, policies, prompts, reservation, bar)
    run.tracker.declare()
    for name, judged in rows.items():
        judged = [replace(row, category=row.category or written_for.get(row.prompt)) for row in judged]
        write_responses(run.files.responses(name), judged)
        _track(run, stage, name, judged)
    long = len(loaded) - len(prompts)
    told = f"{len(policies)} policies on {len(prompts):,} held-out prompts"
    return f"{told}; {long:,} more are too long" if long else told


def _track(run: StageRun, stage: Evaluate, policy: str, judged: list[JudgedResponse]) -> None:
    """A policy's figures, and some of its responses, to the tracker."""
    metrics = policy_metrics(judged, seed=run.seed, judges={name: each.measures for name, each in stage.judges.items()})
    found = {name: each.value for name, each in metrics if isinstance(each, Estimate)}
    for name, each in metrics.judges.items():
        found |= {f"{name}/{key}": value.value for key, value in each if isinstance(value, Estimate)}
    run.tracker.log(run.name, 1, {f"{policy}/{name}": value for name, value in found.items()})
    judges = list(stage.all_judges)
    samples = [[row.prompt, row.response, *(score_by(name, row) for name in judges), row.n_tokens] for row in judged]
    run.tracker.samples(f"{run.name}/{policy}", ("prompt", "response", *judges, "n_tokens"), samples)


def evaluate(
    run: StageRun,
    stage: Evaluate,
    policies: Mapping[str, ModelReference],
    prompts: list[Prompt],
    reservation: Reservation,
    bar: Bar,
) -> dict[str, list[JudgedResponse]]:
    """One response per prompt from each policy, with the same seeds for all, scored by the judges.

    Reward and cost model score chunks as they come; a scorer that is several judges is the others afterwards.
    """
    seed, total = run.seed, len(policies) * len(prompts)
    requests = [PromptRequest(i, prompt, request_seed(seed, "evaluate", i)) for i, prompt in enumerate(prompts)]
    first = next(iter(policies.values()))
    assert isinstance(run.stage, EvaluateStage)
    turns = {name: list(judges) for name, judges in run.stage.turns().items()}
    run.beginning.lap("data")
    asked_at = time.time()
    pool = RolloutPool(first, stage.rollout, reservation, beginning=run.beginning, handover=run.handover)
    scorers = {name: _scorer(run, name, first, reservation) for name in turns}
    source = cast(Any, FolderWeights).options(**reservation.env("FolderWeights-0")).remote()
    answered: dict[str, list[tuple[Chunk, Experience]]] = {}
    scores: dict[str, dict[str, list[Any]]] = {}  # of a policy's chunks, by policy and judge
    try:
        pool.wait_ready()
        loading = [_load(run, stage, names[0], scorers[scorer]) for scorer, names in turns.items()]
        get(loading, START_TIMEOUT_S, "the scorers")
        others = {"FolderWeights": source} | {f"{name}-scorer": scorer for name, scorer in scorers.items()}
        for each, actor in others.items():
            run.beginning.ready(each, asked_at, [get(actor.startup.remote(), START_TIMEOUT_S, each)])
        run.beginning.lap("actors")
        for version, (name, model) in enumerate(policies.items(), start=1):
            pool.load_weights(get(source.publish.remote(model, version), START_TIMEOUT_S, "publishing a policy"))
            chunks: list[Chunk] = []
            pending: dict[str, list[Any]] = {names[0]: [] for names in turns.values()}
            for chunk in pool.generate(requests, decode=True):
                chunks.append(chunk)
                for scorer, names in turns.items():
                    pending[names[0]].append(scorers[scorer].score.remote(chunk.experience))
                bar.update(len(answered) * len(prompts) + sum(len(each.info.uids) for each in chunks), total, name)
            # fetched, as what a worker has made is lost with it, and the next policy may cost workers
            answered[name] = [(c, get(c.experience, SCORE_TIMEOUT_S, "reading a chunk")) for c in chunks]
            scores[name] = {judge: _scores(judge, refs) for judge, refs in pending.items()}
        for scorer, judge in ((scorer, judge) for scorer, names in turns.items() for judge in names[1:]):
            bar.update(total, total, f"judged by {judge}")
            get(_load(run, stage, judge, scorers[scorer]), START_TIMEOUT_S, f"the scorer (judge {judge})")
            for name, answers in answered.items():
                refs = [scorers[scorer].score.remote(experience) for _, experience in answers]
                scores[name][judge] = _scores(judge, refs)
        return {name: _judged(prompts, answers, scores[name]) for name, answers in answered.items()}
    finally:
        pool.stop()
        for actor in (source, *scorers.values()):
            ray.kill(actor)


def _load(run: StageRun, stage: Evaluate, name: str, scorer: Any) -> Any:
    """A ref that is there once the scorer is the judge of that name."""
    judge = stage.all_judges[name]
    return scorer.load.remote(judge, judge.measures, run.models.get(judge_key(name)))


def _scorer(run: StageRun, name: str, policy: ModelReference, reservation: Reservation) -> Any:
    """The actor that the stage starts to score with."""
    asked = run.stage.actor(f"{name}-scorer")
    assert asked.resources is not None
    worker = cast(Any, ScoreWorker).options(**reservation.options(asked, 0))
    return worker.remote(scoring_engine(), asked.resources.threads, policy, Path.cwd())


def _scores(judge: str, refs: list[Any]) -> list[Any]:
    """Of each chunk, [N] float32."""
    return [get(ref, SCORE_TIMEOUT_S, f"the scorer (judge {judge})") for ref in refs]


def _judged(
    prompts: list[Prompt], answers: list[tuple[Chunk, Experience]], scores: Mapping[str, list[Any]]
) -> list[JudgedResponse]:
    """Scores and gold verdicts, in the order of the prompts."""
    found: dict[int, JudgedResponse] = {}
    for number, (chunk, experience) in enumerate(answers):
        assert chunk.info.texts is not None
        for i, uid in enumerate(chunk.info.uids):
            own = {judge: float(each[number][i]) for judge, each in scores.items()}
            found[uid] = judged_response(
                prompts[uid].text, chunk.info.texts[i], own.pop("reward", None), own.pop("cost", None),
                int(experience.response_lengths[i]), own,
            )  # fmt: skip
    return [found[uid] for uid in np.arange(len(prompts)).tolist()]


def judged_response(
    prompt: str,
    response: str,
    reward: float | None,
    cost: float | None,
    n_tokens: int,
    scores: Mapping[str, float] | None = None,
) -> JudgedResponse:
    """With the gold judge's verdict where the prompt is of the synthetic corpus; `scores` are the further judges'."""
    known, further = find_prompt(prompt), dict(scores or {})
    if known is None:
        return JudgedResponse(prompt, response, None, None, None, reward, cost, None, None, None, n_tokens, further)
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
        scores=further,
    )
