"""The closing comparison: every policy answers the held-out prompts, is scored, judged, and reported."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import ray

from actors.folder_weights import FolderWeights
from actors.group import START_TIMEOUT_S, actor_options, get
from actors.rollout import PromptRequest
from actors.rollout_pool import Chunk, RolloutPool, request_seed
from actors.scorer import PolicyText, ScoreWorker
from castor.config.evaluate import Evaluate
from castor.config.training import Engine
from castor.data.rows.load import load_prompts
from castor.evaluation.records import JudgedResponse, write_responses
from castor.io.terminal import Bar
from castor.models.classifier_cost import check_classifier
from castor.models.moderation import read_moderation_info
from castor.run.check import evaluated
from castor.synthetic.judge import judge
from castor.synthetic.prompts import find_prompt
from trainers.context import Context
from trainers.prompts import check_context, fitting_prompts
from trainers.results import responses_file

SCORE_TIMEOUT_S = 600.0


def run_evaluate(context: Context, name: str, stage: Evaluate) -> str:
    """Write <run_dir>/evaluate/<policy>.jsonl for every policy; the pipeline makes summary and report of them."""
    folder = context.folder
    policies = {policy: folder.model_path(reference) for policy, reference in evaluated(context.config).items()}
    first = next(iter(policies.values()))
    check_context(name, first, stage.rollout.max_prompt_tokens, stage.rollout.max_new_tokens)
    if stage.cost_classifier is not None:
        judge_of_harm = folder.model_path(stage.cost)
        check_classifier(read_moderation_info(judge_of_harm), stage.cost_classifier, f"{name}.cost: {judge_of_harm}")
    prompts = context.load_rows(name, [stage.prompts], load_prompts)
    prompts = fitting_prompts(context, name, prompts, first, stage.rollout.max_prompt_tokens)
    with context.terminal.bar(name) as bar:
        rows = evaluate(context, stage, policies, prompts, bar)
    for policy, judged in rows.items():
        write_responses(responses_file(folder.path, policy), judged)
    return f"{len(policies)} policies on {len(prompts)} held-out prompts"


def evaluate(
    context: Context, stage: Evaluate, policies: dict[str, str], prompts: list[str], bar: Bar
) -> dict[str, list[JudgedResponse]]:
    """One response per prompt from each policy, with the same seeds for all, scored by the reward and cost model."""
    seed, total = context.config.seed, len(policies) * len(prompts)
    requests = [PromptRequest(i, prompt, request_seed(seed, "evaluate", i)) for i, prompt in enumerate(prompts)]
    first, template = next(iter(policies.values())), context.config.template
    pool = RolloutPool(first, stage.rollout, template)
    models = {kind: context.folder.model_path(getattr(stage, kind)) for kind in ("reward", "cost")}
    scorers = {
        kind: cast(Any, ScoreWorker)
        .options(**actor_options(stage.resources, f"{kind}-scorer"))
        .remote(
            model,
            Engine(pack_length=128),
            stage.resources.threads,
            PolicyText(first, template),
            stage.cost_classifier if kind == "cost" else None,
        )
        for kind, model in models.items()
    }
    source = cast(Any, FolderWeights).remote()
    rows: dict[str, list[JudgedResponse]] = {}
    try:
        pool.wait_ready()
        get([scorer.ready.remote() for scorer in scorers.values()], START_TIMEOUT_S, "the scorers")
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


def _judged(prompts: list[str], pending: list[tuple[Chunk, dict[str, Any]]]) -> list[JudgedResponse]:
    """Scores and gold verdicts, in the order of the prompts."""
    found: dict[int, JudgedResponse] = {}
    for chunk, refs in pending:
        scores = {kind: get(ref, SCORE_TIMEOUT_S, f"the {kind} scorer") for kind, ref in refs.items()}
        experience = get(chunk.experience, SCORE_TIMEOUT_S, "reading a chunk")
        assert chunk.info.texts is not None
        for i, uid in enumerate(chunk.info.uids):
            found[uid] = judged_response(
                prompts[uid], chunk.info.texts[i], float(scores["reward"][i]), float(scores["cost"][i]),
                int(experience.response_lengths[i]),
            )  # fmt: skip
    return [found[uid] for uid in np.arange(len(prompts)).tolist()]


def judged_response(prompt: str, response: str, reward: float, cost: float, n_tokens: int) -> JudgedResponse:
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
