"""One RLHF run as a stage: resolve its models and limits, start its groups, run the loop, keep what it made."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from actors.group import get
from actors.reservation import reserve
from actors.signal import SignalModels
from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.data.rows.load import load_prompts, stream_demonstrations
from castor.data.rows.mixture import Mixture
from castor.data.rows.schemas import QARow
from castor.data.tokens.prompt_stream import PromptStream
from castor.data.tokens.template import require_same_tokenizer
from castor.io.ending import keeping_state
from castor.io.errors import CastorError
from castor.io.files import write_json, write_jsonl
from castor.model_reference import ModelLike, ModelReference
from castor.models.load import read_score_info
from castor.run.ledger import Terms
from trainers.judges import check_judge
from trainers.prompts import fitting_prompts
from trainers.rlhf.checkpointing import Checkpointing
from trainers.rlhf.groups import Groups
from trainers.rlhf.recovery import Recovery
from trainers.rlhf.run_log import RunLog
from trainers.rlhf.run_state import RunState, find_left
from trainers.stage_run import StageRun


def run_rlhf(run: StageRun) -> str:
    """Carry out an RLHF run: its policy, its steps and its record are left in its folder."""
    config: RLHF = run.section
    policy = run.models["policy.model"]
    signals = {name: _signal_models(run, config, name, policy) for name in config.signals}
    limits = {name: limit_of(signal, signals[name].judge) for name, signal in config.constraints.items()}
    loaded = run.rows.load([config.prompts], load_prompts)
    prompts = fitting_prompts(run, loaded, policy, config.rollout)
    stream = PromptStream(prompts, config.prompts_per_step, run.seed)
    ptx = config.learner.ptx
    run.claim.make(run.files.training)
    left = find_left(run)
    if left is None:
        shutil.rmtree(run.files.checkpoints, ignore_errors=True)  # of the run that this one replaces
    for path in (run.files.multipliers, run.files.deadly_prompts):
        path.unlink(missing_ok=True)
    log = RunLog(run, config, limits)
    demonstrations: AbstractContextManager[Mixture[QARow] | None] = (
        run.rows.store([ptx.data], QARow, stream_demonstrations, use="ptx") if ptx else nullcontext()
    )
    with (
        demonstrations as ptx_rows,
        run.terminal.bar(run.name) as log.bar,
        reserve(run.bundles, run.name, run.profile, run.handover) as reservation,
        Groups(
            config,
            actors={each.name: each for each in run.stage.actors()},
            reservation=reservation,
            policy=policy,
            signals=signals,
            limits=limits,
            template=run.template,
            seed=run.seed,
            ptx_rows=ptx_rows,
            multipliers_file=run.files.multipliers,
            beginning=run.beginning,
            handover=run.handover,
        ) as groups,
    ):
        nodes = groups.nodes()
        state = RunState(groups, stream, run.seed, log)
        if left is not None:
            run.terminal.line(f"{run.name} goes on after step {left.step} of {config.steps}")
            state.read(left)
            run.beginning.lap("checkpoint")
        elif groups.rollout.taken:
            state.producer.publish(0)
        terms = Terms(len(prompts), config.prompts_per_step, config.samples_per_prompt, config.rollout.max_staleness)
        checkpointing = Checkpointing(run, state, terms, left.step if left else 0)
        with keeping_state(run.terminal.tell_of_ending):
            recovery = Recovery(run, state, checkpointing)
            recovery.carry_out(lambda: _save(groups, run.files.policy))
        checkpointing.finish()
    kept = {
        name: {
            "statistic": config.signals[name].constraint.statistic,
            "limit": limit,
            "confidence": config.signals[name].constraint.confidence,
        }
        for name, limit in limits.items()
    }
    write_jsonl(run.files.ledger, [entry.to_json() for entry in state.producer.ledger])
    record = {
        "limits": kept,
        "nodes": nodes,
        "restarts": recovery.restarts.taken,
        "deadly_prompts": list(stream.aside),
        "alarms": log.alarms,
        "ledger": asdict(terms),
        "steps": log.steps,
    }
    write_json(run.files.run_record, record)
    shutil.rmtree(run.files.training.folder)
    told = log.closing_line()
    if stream.aside:
        told += f"\n[yellow]{len(stream.aside)} prompts killed their engines and were set aside[/]: "
        told += f"see {run.files.deadly_prompts}"
    return told


def _save(groups: Groups, folder: Path) -> None:
    saving = groups.learner.call("export", folder)
    get(saving, groups.config.learner.timeout_s, "the learner (saving the policy)")


def _signal_models(run: StageRun, config: RLHF, name: str, policy: ModelReference) -> SignalModels:
    """What a signal is made from. Raises CastorError when its judge or its critic would not fit the run."""
    signal, judge = config.signals[name], run.models.get(f"signals.{name}.model")
    check_judge(f"{run.name}: signal {name!r}, a {signal.role}", signal, signal.measures, judge)
    critic = None
    if config.has_critic(name):
        critic = run.models.get(f"signals.{name}.critic_model", judge)
        assert critic is not None  # `RLHF` has checked it
        require_same_tokenizer(policy, critic, f"{run.name}: the critic of signal {name!r}")
    return SignalModels(judge, critic, policy, Path.cwd())


def limit_of(signal: Signal, model: ModelLike | None) -> float:
    """The limit of a constraint in the unit of its statistic: normalised cost, or a share.

    Raises CastorError when a share must be translated into a cost and the model cannot.
    """
    if signal.known_limit is not None:
        return signal.known_limit
    assert signal.unsafe_share is not None
    assert model is not None  # `Signal` takes the share of a text judge as a share only
    info = read_score_info(model)
    if info.safe_mean is None or info.unsafe_mean is None:
        raise CastorError(
            f"{model} does not know the mean cost of safe and of unsafe responses, so unsafe_share has no threshold: "
            "state threshold instead, or limit the share itself with constraint.statistic share"
        )
    return info.safe_mean + signal.unsafe_share * (info.unsafe_mean - info.safe_mean)
