"""A short PPO-Lag run of a small model, every actor with a share of the one GPU."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from actors.cluster import cluster
from actors.reservation import reserve
from actors.signal import SignalModels
from benchmarks.gpu_check.setting import Figures, Setting
from castor.config.cluster import RayCluster
from castor.config.demo_model import DemoModel
from castor.config.learner import Learner
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF, Policy, Reference
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Optimizer, Resources
from castor.data.tokens.prompt_stream import PromptStream
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.model_reference import ModelReference
from castor.models.score import ScoreInfo, ScoreModel, ScoreType, save_score_model
from castor.models.tiny import make_demo_model
from castor.run.bundles import make_bundles
from castor.run.stages.rlhf import RLHFStage
from castor.synthetic.prompts import enumerate_prompts
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import StepResult, train
from trainers.rlhf.producer import Producer

STEPS, LIMIT = 3, -0.2
WAYS = {"side by side": False, "in turns": True}


def short_run(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """Engines, critics, learner and multiplier work together: with groups side by side, and in turns."""
    with tempfile.TemporaryDirectory() as place, cluster(RayCluster(num_cpus=8)):
        folder = Path(place)
        _models(folder, setting)
        for name, colocate in WAYS.items():
            if colocate or not setting.small:  # without a GPU nothing moves, and the two are the same
                yield name, _run(folder, setting, colocate)


def prompt_texts() -> list[str]:
    """Prompts of the synthetic corpus."""
    return [prompt.text for prompt in enumerate_prompts("train")]


def _run(folder: Path, setting: Setting, colocate: bool) -> Figures:
    config = _config(setting, colocate)
    stage = RLHFStage("check", "rlhf.check", config)
    policy = ModelReference(str(folder / "policy"))
    judges = {"help": str(folder / "reward"), "harm": str(folder / "cost")}
    template = PromptTemplate(load_tokenizer(policy), "auto")
    prompts = template.tokenised(prompt_texts()[:200])
    results: list[StepResult] = []
    with (
        reserve(make_bundles(stage.actors(), 8), "check") as reservation,
        Groups(
            config,
            actors={each.name: each for each in stage.actors()},
            reservation=reservation,
            policy=policy,
            signals={name: SignalModels(model, model, policy) for name, model in judges.items()},
            limits={"harm": LIMIT},
            template="auto",
            seed=0,
            ptx_rows=None,
            multipliers_file=folder / f"multipliers-{colocate}.json",
        ) as groups,
    ):
        stream = PromptStream(prompts, config.prompts_per_step, 0)
        train(config, groups, Producer(config, groups, stream, 0, 1), results.append)
    last = results[-1].metrics
    if not all(math.isfinite(value) for value in last.values()):
        raise RuntimeError(f"a metric of the last step is not finite: {last}")
    seconds = ("rollout_s", "learn_s", "transfer_s", "switch_s")
    figures: Figures = {name: last[name] for name in seconds if name in last}
    multiplier = results[-1].coefficients.multipliers["harm"] if results[-1].coefficients else math.nan
    return figures | {"log-prob gap": last["logprob_gap_mean"], "multiplier": multiplier}


def _config(setting: Setting, colocate: bool) -> RLHF:
    share = Resources(gpus=0 if setting.small else 0.2)
    engine = Engine(
        zero_stage=2,
        micro_batch_tokens=2048,
        pack_length=128,
        optimizer=Optimizer(lr=1e-3, lr_scheduler_type="constant", lr_warmup_ratio=0),
    )
    return RLHF(
        steps=STEPS,
        prompts_per_step=16,
        policy=Policy(reference=Reference(resources=share)),
        signals={
            "help": Signal(role="objective", model="reward", critic=engine, resources=share),
            "harm": Signal(role="constraint", model="cost", threshold=LIMIT, critic=engine, resources=share),
        },
        multipliers=Multipliers(lambda_init=0.5, lambda_lr=0.5, episode_cost_window_size=16),
        rollout=Rollout(
            max_prompt_tokens=64, max_new_tokens=32, chunk_size=4, max_num_seqs=16, kv_cache_mib=64,
            gpu_memory_utilization=0.2, resources=share,
        ),
        learner=Learner(engine=engine, resources=share),
        colocate=colocate,
    )  # fmt: skip


def _models(folder: Path, setting: Setting) -> None:
    """A policy, and a reward and a cost model on its backbone, all of them random."""
    hidden = 64 if setting.small else 256
    config = DemoModel(
        hidden_size=hidden, intermediate_size=2 * hidden, heads=hidden // 32, max_position_embeddings=160
    )
    make_demo_model(config, prompt_texts(), 0, folder / "policy")
    kinds: tuple[ScoreType, ...] = ("reward", "cost")
    for kind in kinds:
        torch.manual_seed(1)
        model = ScoreModel.from_backbone(str(folder / "policy"), ScoreInfo(kind), torch.float32)
        weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
        save_score_model(folder / kind, model.backbone, weights, model.info, str(folder / "policy"))
