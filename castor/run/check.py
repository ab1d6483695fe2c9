"""What can be wrong between the sections of a config, found before anything starts. Free of torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from castor.config.data import SYNTHETIC, is_function, mixture_finding
from castor.config.demo_model import DemoModel
from castor.config.model import STAGE, Model, source_of, stage_of
from castor.data.sources.file_names import is_data_file, is_url
from castor.data.sources.known_sets import unknown_name
from castor.io.errors import CastorError
from castor.io.user_function import function_finding
from castor.models.head_kind import TAXONOMIES, head_kind
from castor.run.actors import Trained
from castor.run.check_gpus import gpu_findings, heads_finding
from castor.run.check_judges import judge_findings
from castor.run.plan import Plan
from castor.run.stages.stage import ANY_MODEL, LANGUAGE_MODEL, ROWS, Read, Stage


def check(plan: Plan) -> None:
    """Raise CastorError, one line per finding, when sections contradict each other.

    Looked at: what each stage finds wrong with itself, every `stage:NAME` (is there such a section, does it run
    earlier, does it make the right thing), every local path, the head of a model in a local folder, functions (they are
    imported, and must take what they will be given), categories of moderation models, contexts (prompt + response
    against the context of the model that reads them), and GPUs (`castor.run.check_gpus`). What is only known on the
    cluster or the hub is not looked at.
    """
    stages = plan.stages.values()
    findings = [finding for stage in stages for finding in stage.findings()]
    judges = [each for stage in stages for each in stage.judges()]
    findings += [finding for place, judge in judges for finding in judge_findings(place, judge, plan.stages)]
    findings += [finding for stage in stages for read in stage.reads() if (finding := _finding(plan, stage, read))]
    if not findings:
        findings = [finding for stage in stages for finding in _later_findings(plan, stage)]
    if findings:
        raise CastorError("\n".join(dict.fromkeys(findings)))


def _later_findings(plan: Plan, stage: Stage) -> Iterator[str]:
    """What can be asked once every reference is known to be right."""
    sources = [each.source for each in stage.rows()]
    if (finding := mixture_finding(sources)) is not None:
        yield f"{stage.place}.data: {finding}"
    for read in stage.models():
        yield from _context_findings(plan, stage, read)
        yield from _heads_findings(plan, stage, read)
    for actors in stage.actors():
        for held in actors.holds:
            if isinstance(held, Trained) and (finding := _layers_finding(plan, held)) is not None:
                yield f"{stage.place}, {actors.name}: {finding}"
    yield from gpu_findings(stage, plan.config.ray.hardware)


def _finding(plan: Plan, stage: Stage, read: Read) -> str | None:
    reference, key = source_of(read.reference), f"{stage.place}.{read.key}"
    name, order = stage_of(reference), list(plan.stages)
    if name is None:
        return _path_finding(plan, key, reference, rows=read.kinds == ROWS) or _head_finding(key, reference, read)
    place = f"{key}: {reference}"
    if name not in order:
        near = difflib.get_close_matches(name, order, n=1, cutoff=0.5)
        hint = f"did you mean {STAGE}{near[0]}?" if near else "add the section, or give a folder"
        return f"{place} names a stage, but the config has no section {name!r}; {hint}"
    if order.index(name) >= order.index(stage.name):
        return f"{place} runs {'later' if name != stage.name else 'in this very stage'}: name an earlier stage"
    made = plan.stages[name].makes
    if made not in read.kinds:
        wanted = "a model" if read.kinds == ANY_MODEL else " or ".join(sorted(read.kinds))
        return f"{place} is not what is read here: needed {wanted}, got {'a ' * (made == 'report')}{made}"
    return None


def _path_finding(plan: Plan, key: str, text: str, *, rows: bool) -> str | None:
    """A local path, or a data set, that is not there. Paths in the run's own folder may be made by the run itself."""
    path = Path(text).expanduser()
    if rows and is_function(text):
        finding = function_finding(text, ["source"])
        return finding and f"{key}: {finding}"
    if path.exists() or (rows and (text == SYNTHETIC or is_url(text))):
        return None
    names_a_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if names_a_path or (rows and is_data_file(text)):
        made_here = path.absolute().is_relative_to(plan.files.folder)
        return None if made_here else f"{key}: there is no {text}: fix the path"
    finding = unknown_name(text) if rows else None
    return finding and f"{key}: {finding}"


def _head_finding(key: str, text: str, read: Read) -> str | None:
    """A folder whose model has another head than is read here. What is not on this machine is not looked at."""
    if read.kinds in (ROWS, ANY_MODEL) or not Path(text).is_dir():
        return None
    head = head_kind(str(Path(text)))
    if head == "unknown":
        return None
    if head in TAXONOMIES:
        made = "moderation model"
    else:
        made = "language model" if head is None else "critic" if head == "critic" else f"{head} model"
    if made in read.kinds:
        return None
    return f"{key}: {text} holds a {made}, but needed is a {' or '.join(sorted(read.kinds))}: give another folder"


def _context_findings(plan: Plan, stage: Stage, read: Read) -> Iterator[str]:
    limit, longest, name = context_of(plan.origin(read.reference)), stage.longest, source_of(read.reference)
    if limit is None or longest is None or longest <= limit:
        return
    rollout = stage.rollout
    if rollout is None:
        yield f"{stage.place}.max_length {longest} exceeds the context of {limit} tokens of {name}: lower it"
    else:
        yield (
            f"{stage.place}.rollout: max_prompt_tokens {rollout.max_prompt_tokens} + max_new_tokens "
            f"{rollout.max_new_tokens} exceed the context of {limit} tokens of {name}: lower one of them"
        )


def _heads_findings(plan: Plan, stage: Stage, read: Read) -> Iterator[str]:
    """Attention heads of the policies that an engine would sample from, where they are known."""
    if stage.rollout is None or read.kinds != LANGUAGE_MODEL:
        return
    model = plan.origin(read.reference)
    heads = model.heads if isinstance(model, DemoModel) else _config_number(model, "num_attention_heads")
    if heads is not None:
        parallel = stage.rollout.tensor_parallel_size
        finding = heads_finding(f"{stage.place}.rollout", source_of(read.reference), heads, parallel)
        if finding is not None:
            yield finding


def _layers_finding(plan: Plan, held: Trained) -> str | None:
    """Layers that are to be trained, and are not there."""
    wanted, model = held.engine.trained_layers, plan.origin(held.model)
    if wanted == 0 and not held.score:
        return "trained_layers 0 leaves nothing of a language model to train: give it 1 or more"
    layers = model.layers if isinstance(model, DemoModel) else _config_number(model, "num_hidden_layers")
    if wanted is None or layers is None or wanted <= layers:
        return None
    return f"trained_layers is {wanted}, and {source_of(held.model)} has {layers} layers: lower it"


def context_of(model: DemoModel | Model) -> int | None:
    """Longest sequence of a model in tokens; None for a hub id, or where its config.json does not say."""
    if isinstance(model, DemoModel):
        return model.max_position_embeddings
    return _config_number(model, "max_position_embeddings")


def _config_number(model: Model, key: str) -> int | None:
    path = Path(model.source) / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CastorError(f"{path} is not valid JSON ({error}): fetch the model again") from error
    number = values.get(key) if isinstance(values, dict) else None
    return number if isinstance(number, int) else None
