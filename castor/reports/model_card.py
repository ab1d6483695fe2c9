"""The model card of what a stage leaves: README.md in the format of the Hugging Face Hub.

It says what the run knows. A figure that the run did not measure is not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import castor
from castor.config.data import SYNTHETIC, DataSource, is_function
from castor.config.model import stage_of
from castor.data.sources.file_names import is_url
from castor.data.sources.known_sets import find_set
from castor.evaluation.metrics import PolicyMetrics
from castor.evaluation.summary import RowCounts
from castor.model_reference import READING
from castor.reports.limits import Told
from castor.reports.wording import interval, left_out, measured_columns, number, policy_title

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

COMPARED = "Compared on held-out prompts"  # the section that `evaluate` adds

_USE = {
    "language model": "Answering prompts in the format it was trained with, for research on helpful and harmless "
    "models. Put a moderation model before and behind it where people read what it writes.",
    "reward model": "Saying which of two responses to one prompt is the more helpful: a signal for training and for "
    "comparing policies. One reward alone means nothing.",
    "cost model": "Saying whether a response is unsafe (a cost above zero) and which of two is the more harmful: a "
    "constraint for training, a figure for comparing policies.",
    "moderation model": "Sorting responses into harm categories: a filter for data, a guard beside people who decide.",
}
_LIMITS = {
    "language model": "It can write what is false, harmful or biased; training against judges lowers how often, as "
    "those judges see it. What a judge does not see, it was not trained against.",
    "reward model": "It carries the preferences of those who labelled its data, in their languages, and prefers what "
    "looks like it. A policy trained against it finds its errors.",
    "cost model": "Its boundary is that of its data's labels. It misses harms and attacks that its data lack, and "
    "calls some harmless texts unsafe; a policy trained against it finds its errors.",
    "moderation model": "Its thresholds were chosen on held-out rows of its own data: choose them again on yours. Rare "
    "categories are judged worst. It must not decide alone what happens to a person.",
}
_TASK = {"language model": "text-generation"}  # any other: text-classification
_COUNTS = ("training_samples", "validation_samples", "too_long")  # told in words


@dataclass(frozen=True)
class ModelFacts:
    """What a run knows of a model that one of its stages left."""

    stage: str
    kind: str  # of `castor.run.stages.stage.Kind`, one that is a model
    run: str  # name of the run's folder
    base: str | None  # folder or hub id that it goes back to; None: random weights
    start: str | None  # what the config has as its start, such as stage:sft; None: it was not trained
    template: str  # prompt format of the config
    seed: int
    data: Sequence[tuple[DataSource, int]]  # each source, with the rows taken from it
    rows: RowCounts | None  # what became of the rows that were read; None: nothing was read
    judges: Mapping[str, str]  # signal of an RLHF run: what it is and what judges it
    figures: Mapping[str, float]  # what the run measured; those that are no finite numbers are left out


def model_card(facts: ModelFacts) -> str:
    """The text of README.md."""
    parts = [
        f"---\n{_metadata(facts).to_yaml()}\n---",
        f"# {facts.run}: {facts.stage}",
        f"A {facts.kind} that Castor {castor.__version__} made, stage `{facts.stage}` of a run with seed {facts.seed}. "
        f"{_origin(facts)}",
        f"## Intended use\n\n{_USE[facts.kind]}",
        f"## {READING}\n\n{_how(facts)}",
        f"## Data\n\n{_data(facts)}",
    ]
    if facts.judges:
        lines = [f"- `{name}`: {what}" for name, what in facts.judges.items()]
        parts.append("## Signals it was trained on\n\n" + "\n".join(lines))
    figures = {name: value for name, value in facts.figures.items() if name not in _COUNTS and _is_number(value)}
    if figures:
        rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in figures.items()]
        where = "in its last step" if facts.judges else "accuracy and its like on rows held out of its own data"
        table = "\n".join(["| figure | value |", "|---|---|", *rows])
        parts.append(f"## Figures\n\nWhat the run measured, {where}.\n\n{table}")
    parts += [f"## Limits\n\n{_LIMITS[facts.kind]}", f"## Licence\n\n{_licence(facts)}"]
    return "\n\n".join(parts) + "\n"


def with_comparison(card: str, name: str, policies: Mapping[str, PolicyMetrics], limits: Sequence[Told] = ()) -> str:
    """The card of policy `name` with the figures of all policies it was compared with, in place of earlier ones.

    `limits`: what became of the limits that it was trained under, which comes first.
    """
    titles = [f"{policy_title(each)}{' (this model)' if each == name else ''}" for each in policies]
    lines = [f"- **{limit.title}: {limit.state}.** {' '.join(limit.sentences)}\n" for limit in limits]
    lines += [
        f"Every policy answered the same {policies[name].n} prompts; 95 % intervals. Rewards and costs are those of "
        "the run's judges.\n",
        f"| figure | {' | '.join(titles)} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for column in measured_columns(policies.values()):
        cells = []
        for metrics in policies.values():
            found = column.of(metrics)
            shown = "" if found is None else f"{number(found.value, column.is_share)}"
            cells.append(shown if found is None else f"{shown} ({interval(found, column.is_share)})")
        lines.append(f"| {column.title} | {' | '.join(cells)} |")
    section = f"## {COMPARED}\n\n" + "\n".join(lines) + "\n"
    earlier = re.compile(rf"^## {COMPARED}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if earlier.search(card):
        return earlier.sub(lambda _: section, card, count=1)
    return f"{card.rstrip()}\n\n{section}"


def _metadata(facts: ModelFacts) -> ModelCardData:
    from huggingface_hub import ModelCardData  # a run with nothing to do needs none of it

    sets = [named.id for source, _ in facts.data if (named := find_set(source.source)) is not None]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASK.get(facts.kind, "text-classification"),
        base_model=facts.base if facts.base is not None and _is_hub_id(facts.base) else None,
        datasets=list(dict.fromkeys(sets)) or None,
        tags=["castor", "safe-rlhf", facts.kind.replace(" ", "-")],
    )


def _origin(facts: ModelFacts) -> str:
    if facts.start is None:
        return "Its weights are random: it has learnt nothing yet."
    origin = "random weights" if facts.base is None else _model_name(facts.base)
    stage = stage_of(facts.start)
    return f"It goes back to {origin}{f'; it was trained from stage `{stage}` of the run' if stage else ''}."


def _how(facts: ModelFacts) -> str:
    forms = {
        "auto": "the tokenizer's chat template, or PKU's format if it has none",
        "chat": "the tokenizer's chat template",
        "pku": "PKU's format, `BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:`",
    }
    form = forms.get(facts.template, f"the format `{facts.template}`")
    reads = f"It reads prompts in {form} (`template: {facts.template}`)."
    if facts.kind == "language model":
        return f"{reads} `AutoModelForCausalLM` and vLLM read the folder as it is."
    return (
        f"{reads} Castor reads the folder as it is. `castor export MODEL FOLDER --as sequence-classification` writes "
        "one that transformers reads alone, with code in its card for the same numbers. `castor assess` measures "
        "it on labelled rows."
    )


def _data(facts: ModelFacts) -> str:
    if not facts.data:
        return "The run has no record of its rows."
    lines = ["| source | split | rows taken |", "|---|---|---|"]
    for source, rows in facts.data:
        revision = source.revision or getattr(find_set(source.source), "revision", None)
        pinned = f" at `{revision[:12]}`" if revision and stage_of(source.source) is None else ""
        split = source.split if source.source == SYNTHETIC or _on_the_hub(source.source) else ""
        lines.append(f"| {_source_name(source)}{pinned} | {split} | {rows:,} |")
    counts = {name: int(facts.figures[name]) for name in _COUNTS if _is_number(facts.figures.get(name))}
    if "training_samples" in counts and "validation_samples" in counts:
        lines.append(
            f"\n{counts['training_samples']:,} samples were trained on and {counts['validation_samples']:,} held out, "
            "split by prompt."
        )
    if facts.rows is not None and (missing := left_out(facts.rows)):
        lines.append(f"\nLeft out of {facts.rows.read:,} rows read: {missing}.")
    return "\n".join(lines)


def _licence(facts: ModelFacts) -> str:
    lines = ["What may be done with the model follows from the licences of what it was made of:", ""]
    if facts.base is not None:
        lines.append(f"- {_model_name(facts.base)}: see its own licence")
    for name, licence in dict.fromkeys((_source_name(source), _licence_of(source)) for source, _ in facts.data):
        lines.append(f"- {name}: {licence}")
    return "\n".join(lines)


def _licence_of(source: DataSource) -> str:
    if source.source == SYNTHETIC:
        return "that of Castor, whose generator made it"
    if stage_of(source.source) is not None:
        return "written by the run itself; see what its models were made of"
    named = find_set(source.source)
    return "see the data's own licence" if named is None or named.licence is None else f"`{named.licence}`"


def _source_name(source: DataSource) -> str:
    name = source.source
    if name == SYNTHETIC:
        return "Castor's synthetic corpus"
    if stage_of(name) is not None:
        return f"stage `{stage_of(name)}` of the run"
    if (named := find_set(name)) is not None:
        return f"[{named.id}](https://huggingface.co/datasets/{named.id}){f', {source.name}' if source.name else ''}"
    return f"`{name}`" if is_url(name) or _on_the_hub(name) or is_function(name) else f"`{Path(name).name}`"


def _on_the_hub(name: str) -> bool:
    return find_set(name) is not None or (_is_hub_id(name) and not Path(name).suffix)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _model_name(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if _is_hub_id(name) else f"the local folder `{Path(name).name}`"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
