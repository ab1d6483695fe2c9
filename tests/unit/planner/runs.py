"""RLHF runs to plan, without files: 8B models by their name, on GPUs."""

from castor.config.pipeline import Config
from castor.dry_run.shapes import Shape
from castor.run.plan import make_plan

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
OWN = {"gpus": 1}
LLAMA_8B = Shape(8_030_261_248, 7_504_924_672, 4096, 14336, 32, 128256, heads=32, kv_heads=8, head_size=128)


def sizes(option):
    """As of `castor.dry_run.placement.Sizes`, with nothing to import."""
    return LLAMA_8B if option == MODEL else None


def stage_of(rollout=None, learner=None, signals=None, reference=None, **section):
    """The stage of a run with one critic, or other signals, and the size of its models."""
    engine = {"zero_stage": 3, "gradient_checkpointing": True, "micro_batch_tokens": 4096, "pack_length": 1024}
    judge = {"role": "objective", "model": MODEL, "critic": engine, "resources": OWN, "ranks": 2}
    run = {
        "steps": 10,
        "prompts_per_step": 64,
        "policy": {"model": MODEL, "reference": {"resources": OWN} | (reference or {})},
        "signals": signals or {"help": judge},
        "rollout": {"workers": 1, "chunk_size": 16, "max_num_seqs": 256, "resources": OWN} | (rollout or {}),
        "learner": {"ranks": 2, "engine": engine, "resources": OWN} | (learner or {}),
    }
    plan = make_plan(Config(rlhf={"run": run | section}))
    (stage,) = plan.of_kind("rlhf")
    return stage, sizes
