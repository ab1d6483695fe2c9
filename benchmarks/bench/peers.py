"""GRPO and RLOO: seconds of a step of TRL's trainer over those of Castor's, on one model, its prompts and reward.

TRL runs in an environment of its own, made under ~/.cache/castor-bench (or $CASTOR_BENCH_CACHE) at the first run, with
the torch and transformers of this one. Both sample as many responses of the same length (the model ends one in
thousands of tokens), with a KL penalty to a reference and one update a step, in float32 with all cores, Castor's actors
by turns. TRL samples with transformers' `generate`: its vLLM is none for CPUs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

import benchmarks
from benchmarks.bench.measurement import Ratio, Section
from benchmarks.bench.random_models import cores, llama, make_llama, random_prompts
from castor.config.demo_model import DemoModel
from castor.io.errors import CastorError
from castor.io.files import read_jsonl, write_json, write_jsonl
from castor.run.files import RunFiles

TRL = "trl==1.16.0"
CACHE = "CASTOR_BENCH_CACHE"  # environment: where its Python lies
ROOT = Path(benchmarks.__file__).parent.parent
RUN_S = 600.0
WARM_UP = 2  # steps that are left out
LR, KL_COEFF = 1e-4, 0.02
ESTIMATORS = {"grpo": "group_relative", "rloo": "leave_one_out"}


@dataclass(frozen=True)
class Work:
    """What both do."""

    model: DemoModel
    steps: int
    prompts: int  # of a step
    samples: int  # of each prompt
    prompt_tokens: int
    max_new_tokens: int


@dataclass(frozen=True)
class Steps:
    """What one run came to, the first steps left out."""

    seconds: float  # median of a step
    length: float  # tokens of a response, mean

    @classmethod
    def of(cls, seconds: list[float], lengths: list[float]) -> Steps:
        """From those of every step."""
        return cls(statistics.median(seconds[WARM_UP:]), statistics.fmean(lengths[WARM_UP:]))


def work(smoke: bool) -> Work:
    """16 prompts, 4 samples of each."""
    if smoke:
        return Work(llama(64, 2, 1024, 128), WARM_UP + 1, 4, 2, 16, 16)
    return Work(llama(256, 4, 4096, 256), WARM_UP + 4, 16, 4, 32, 64)


def trl_python() -> Path:
    """The Python of TRL's environment, which is made where it is missing.

    Raises CastorError when uv is missing or cannot install it, with the end of what uv says.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "castor-bench")
    folder = cache / f"{TRL.replace('==', '-')}-torch-{versions['torch']}-transformers-{versions['transformers']}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.is_file():
        return python
    uv, links = Path(sys.executable).with_name("uv"), os.environ.get("PIP_FIND_LINKS", "").split()
    if not uv.is_file():
        raise CastorError(f"there is no uv beside {sys.executable} to install {TRL} with: run `make install`")
    found = [link for link in links if list(Path(link).glob(f"torch-{versions['torch']}-*.whl"))]
    where = ["--find-links", found[0]] if found else ["--torch-backend", "cpu"]
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    for command in (
        [str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [*install, f"torch=={versions['torch']}", *where],
        [*install, TRL, f"transformers=={versions['transformers']}"],
    ):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            last = (ended.stderr.strip() or "no word").splitlines()[-1]
            raise CastorError(
                f"TRL's environment {folder} could not be made ({last}): the section peers needs a package index once, "
                f"or a folder in {CACHE} that was made where one can be reached"
            )
    done.touch()
    return python


def trl_steps(python: Path, method: str, asked: Work, model: str, texts: list[str], folder: Path) -> Steps:
    """Run TRL's trainer. Raises CastorError with the end of what it says when it fails."""
    output, file = folder / "trl.json", folder / "asked.json"
    values = {key: value for key, value in asdict(asked).items() if key != "model"}
    values |= {"method": method, "model": model, "texts": texts, "lr": LR, "kl_coeff": KL_COEFF}
    values |= {"threads": cores(), "folder": str(folder / "trl"), "output": str(output)}
    write_json(file, values)
    command = [str(python), "-m", "benchmarks.bench.trl_steps", str(file)]
    _run(command, {"OMP_NUM_THREADS": str(cores())}, "TRL's trainer")
    found = json.loads(output.read_text())
    return Steps.of(found["seconds"], found["lengths"])


def castor_config(method: str, asked: Work, model: str, prompts: Path, folder: Path) -> dict[str, Any]:
    """Of a run with one objective and no constraint."""
    everyone, length = {"cpus": 0.2, "threads": cores()}, asked.prompt_tokens + asked.max_new_tokens
    engine = {
        "pack_length": length,
        "micro_batch_tokens": 64 * length,
        "optimizer": {"lr": LR, "lr_scheduler_type": "constant", "lr_warmup_ratio": 0.0},
    }
    run = {
        "steps": asked.steps,
        "prompts": {"source": str(prompts)},
        "prompts_per_step": asked.prompts,
        "samples_per_prompt": asked.samples,
        "policy": {"model": model, "reference": {"resources": everyone}},
        "signals": {
            "b": {
                "role": "objective",
                "function": "benchmarks.bench.word_reward:share_of_b",
                "critic": {"micro_batch_tokens": engine["micro_batch_tokens"], "pack_length": length},
            }
        },
        "advantage": {"estimator": ESTIMATORS[method], "kl_coeff": KL_COEFF},
        "rollout": {
            "max_prompt_tokens": asked.prompt_tokens,
            "max_new_tokens": asked.max_new_tokens,
            "resources": everyone,
        },
        "learner": {"engine": engine, "resources": everyone},
    }
    return {"run_dir": str(folder), "template": "{prompt}", "rlhf": {method: run}}


def castor_steps(method: str, asked: Work, model: str, prompts: Path, folder: Path) -> Steps:
    """Run `castor pipeline`. Raises CastorError with the end of what it says when it fails."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(castor_config(method, asked, model, prompts, folder / "run")))
    _run([sys.executable, "-m", "castor", "pipeline", str(file)], {}, "castor pipeline")
    steps = [step["metrics"] for step in read_jsonl(RunFiles(folder / "run").stage(method).steps)]
    seconds = [sum(step[lap] for lap in ("rollout_s", "learn_s", "checkpoint_s", "transfer_s")) for step in steps]
    return Steps.of(seconds, [step["response_length"] for step in steps])


def _run(command: list[str], env: dict[str, str], what: str) -> None:
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True, timeout=RUN_S
    )
    if ended.returncode:
        raise CastorError(f"{what} failed: {(ended.stderr or ended.stdout).strip()[-2000:]}")


def measure(smoke: bool) -> Section:
    """One ratio a method: above 1 Castor's steps are shorter."""
    asked, python = work(smoke), trl_python()
    ratios, figures = list[Ratio](), dict[str, float]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_llama(asked.model, folder / "model")
        texts = [each.text for each in random_prompts(model, asked.steps * asked.prompts, asked.prompt_tokens)]
        prompts = folder / "prompts.jsonl"
        write_jsonl(prompts, [{"prompt": text} for text in texts])
        for method in ("grpo",) if smoke else ("grpo", "rloo"):
            place = folder / method
            place.mkdir()
            theirs = trl_steps(python, method, asked, model, texts, place)
            ours = castor_steps(method, asked, model, prompts, place)
            ratio = (theirs.seconds / ours.seconds,)
            ratios.append(Ratio(f"{method}: seconds per step, TRL / Castor", ratio, bounded_by="sampling, in both"))
            for name, found in (("TRL", theirs), ("Castor", ours)):
                figures[f"{method}: {name}, s/step"] = found.seconds
                figures[f"{method}: {name}, tokens/response"] = found.length
    return Section("peers", tuple(ratios), figures)
