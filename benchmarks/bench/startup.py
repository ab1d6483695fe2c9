"""Start-up: seconds from the command to the first step of an RLHF run, beside bare vLLM's to its first token, by cause.

The run is GRPO with a function as its judge: a rollout worker, a reference, a learner and the judge start side by side.
Seconds of a part are those of that part alone on this machine; in the run they overlap as far as there are cores. CPU
seconds say what the cores are for: those of each process of the run until its first step began, and of each actor's
imports. What the run's own record says of its start, by cause, stands under `run`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import ray
import yaml

from actors.cluster import cluster
from actors.group import START_TIMEOUT_S, ActorGroup, actor_options, get
from actors.learner import LearnerWorker
from benchmarks.bench.bare_vllm import watch_parts
from benchmarks.bench.measurement import Ratio, Section, seconds
from benchmarks.bench.peers import ROOT, Work, castor_config
from benchmarks.bench.random_models import llama, make_llama, random_prompts
from castor.config.cluster import RayCluster
from castor.config.rollout import Rollout
from castor.config.training import Resources
from castor.io.errors import CastorError
from castor.io.files import read_json, read_jsonl, write_jsonl
from castor.run.files import RunFiles
from engines.vllm_arguments import VLLM_ENV

RUN_S = 900.0
LOOK_S = 0.2  # between two looks at the run's processes
IMPORTS = {  # what each actor has imported when it is ready
    "rollout worker": ("actors.rollout", "vllm", "vllm.entrypoints.llm", "engines.vllm_engine", "castor.models.policy"),
    "learner": ("actors.learner", "castor.models.policy", "engines.deepspeed_engine", "deepspeed"),
    "reference": ("actors.reference", "castor.models.policy", "engines.batch"),
    "signal": ("actors.signal", "castor.scoring.experience_scorer", "castor.algorithms.advantages", "deepspeed"),
}


@ray.remote
class Starting:
    """An actor that does a part of what one does at its start."""

    def ready(self) -> None:
        """Answers once the process is there."""

    def imports(self, modules: tuple[str, ...]) -> tuple[float, float]:
        """Wall and CPU seconds of importing these."""
        import importlib

        begin, spent = time.perf_counter(), time.process_time()
        for module in modules:
            importlib.import_module(module)
        return time.perf_counter() - begin, time.process_time() - spent

    def engine(self, model: str, rollout: Rollout) -> dict[str, float]:
        """Seconds of making a rollout worker's engine, all imported: whole, and by part."""
        from engines.vllm_engine import make_engine

        found, length = watch_parts(), rollout.max_prompt_tokens + rollout.max_new_tokens
        return {"whole": seconds(lambda: make_engine(model, rollout, length, False))} | found


@contextmanager
def starting(**env: str) -> Iterator[Any]:
    """A `Starting`, while the body runs."""
    actor = cast(Any, Starting).options(**actor_options(Resources(cpus=0), "bench", **env)).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)


def parts(model: str, rollout: Rollout) -> dict[str, float]:
    """Seconds of each part by itself, and CPU seconds of the imports."""
    found = {"command, imports of it": seconds(lambda: _python("-c", "import castor.cli.main, trainers.rlhf.stage"))}
    begin = time.perf_counter()
    with cluster(RayCluster()):
        found["Ray"] = time.perf_counter() - begin
        with starting() as actor:
            found["an actor's process"] = seconds(lambda: get(actor.ready.remote(), START_TIMEOUT_S, "an actor"))
        cpu = {}
        for name, modules in IMPORTS.items():
            with starting(**(VLLM_ENV if name == "rollout worker" else {})) as actor:
                wall, spent = get(actor.imports.remote(modules), START_TIMEOUT_S, "an actor (imports)")
                found[f"{name}, imports"], cpu[f"{name}, imports, CPU s"] = wall, spent
                if name == "rollout worker":
                    made = get(actor.engine.remote(model, rollout), START_TIMEOUT_S, "an actor (vLLM)")
                    rest = made.pop("whole") - sum(made.values())
                    found |= {f"vLLM, {part}": s for part, s in made.items()} | {"vLLM, the rest": rest}
        kind = cast(Any, LearnerWorker)
        group = ActorGroup("learner", [kind.options(**actor_options(Resources(cpus=0), "bench")).remote()])
        get(group.call("prepare"), START_TIMEOUT_S, "the learner")
        found["process group of one learner"] = seconds(lambda: group.join(START_TIMEOUT_S))
        group.stop()
    return {f"{name}, s": value for name, value in found.items()} | cpu


def _python(*arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=RUN_S)
    if ended.returncode:
        raise CastorError(f"python {arguments[0]} failed: {ended.stderr.strip()[-2000:]}")


def first_step(config: Path, run: Path, name: str) -> tuple[float, dict[str, float]]:
    """Seconds from `castor pipeline` to the beginning of the first step, and CPU seconds until it ended by process."""
    begin, spent = time.time(), dict[int, tuple[str, float]]()
    steps = RunFiles(run).stage(name).steps
    with (run.parent / f"{run.name}.log").open("w+") as log:
        command = [sys.executable, "-m", "castor", "pipeline", str(config)]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
        while process.poll() is None:
            if not steps.exists():
                _look(psutil.Process(process.pid), spent)
            if time.time() - begin > RUN_S:
                process.kill()
            time.sleep(LOOK_S)
        if process.returncode:
            log.seek(0)
            raise CastorError(f"castor pipeline failed: {log.read()[-2000:]}")
    (step,) = read_jsonl(steps)
    laps = sum(step["metrics"][lap] for lap in ("rollout_s", "learn_s", "checkpoint_s", "transfer_s"))
    by_role: dict[str, float] = defaultdict(float)
    for role, cpu in spent.values():
        by_role[role] += cpu
    return steps.stat().st_mtime - laps - begin, dict(by_role)


def causes(record: Mapping[str, Any]) -> dict[str, float]:
    """What a stage's record says its driver waited for until the first token, and each group of actors, s by name."""
    startup = record.get("startup") or {"seconds": {}, "actors": {}}
    whole = {f"run: {cause}, s": value for cause, value in startup["seconds"].items()}
    by_group = {
        f"run: {group}, {cause}, s": value
        for group, seconds_of in startup["actors"].items()
        for cause, value in seconds_of.items()
    }
    return whole | by_group


def _look(family: psutil.Process, spent: dict[int, tuple[str, float]]) -> None:
    """Note the CPU seconds so far of a process and its descendants, each under what it is."""
    for each in [family, *family.children(recursive=True)]:
        try:
            line, times = " ".join(each.cmdline()), each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent[each.pid] = role(line), times.user + times.system


def role(line: str) -> str:
    """What a process of a run is, from its command line: an actor's class, the command itself, or Ray."""
    if line.startswith("ray::"):
        return line.removeprefix("ray::").split()[0].split(".")[0].split(":")[-1]
    return "castor" if " -m castor " in line else "Ray"


def measure(smoke: bool) -> Section:
    """What Castor takes over what bare vLLM takes, and where it goes."""
    size = llama(64, 2, 1024, 128)
    asked = Work(size, 1, 4, 2, 16, 16)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_llama(size, folder / "model")
        prompts = folder / "prompts.jsonl"
        write_jsonl(prompts, [{"prompt": each.text} for each in random_prompts(model, asked.prompts, 16)])
        run, file = folder / "run", folder / "run.yaml"
        file.write_text(yaml.safe_dump(castor_config("grpo", asked, model, prompts, run)))
        whole, cpu = first_step(file, run, "grpo")
        bare = seconds(lambda: _python("-m", "benchmarks.bench.bare_vllm", model))
        figures = {"command to first step, s": whole, "bare vLLM, command to first token and its end, s": bare}
        figures |= causes(read_json(RunFiles(run).records)["stages"]["grpo"])
        figures |= parts(model, Rollout(max_prompt_tokens=16, max_new_tokens=16))
    for each in sorted(cpu):
        figures[f"run until its first step has ended: {each}, CPU s"] = cpu[each]
    bounded = "the command's imports, Ray's start and the first imports of torch and vLLM, one after the other"
    return Section(
        "startup",
        (Ratio("command to first step / bare vLLM to its first token", (whole / bare,), bounded_by=bounded),),
        figures,
    )
