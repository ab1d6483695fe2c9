"""A run in rounds, unrolled into stages: what Safe RLHF did three times (Dai et al. 2023, sec. 4.1).

Round k is the folder `round-k` of the run, and holds what a run of one round holds: collect, reward, cost and the RLHF
run. Its prompts follow those of the round before, its policy starts where that of the round before ended, which is also
the reference of its KL penalty, and its reward and cost models learn the rows of all rounds so far.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from castor.config.base import Section
from castor.config.collect import Collect
from castor.config.data import DataSource
from castor.config.load import set_option
from castor.config.pipeline import Config
from castor.config.preference import Preference
from castor.io.errors import CastorError

UNIFIED = "unified"
COLLECT = "stage:collect"
REPEATED = ("collect", "reward", "cost", "rlhf")  # fields of the config whose stages run once a round
AnySection = TypeVar("AnySection", bound=Section)


def round_group(number: int) -> str:
    """Folder of a round, and the first part of the names of its stages."""
    return f"round-{number}"


def other_random_numbers(stage: str) -> str | None:
    """The group of a stage that must not draw what its namesake in the first round drew; None for all others."""
    group, in_group, _ = stage.partition("/")
    return group if in_group and group != round_group(1) else None


def round_policies(config: Config) -> list[str]:
    """The stages that make a policy, one a round; none in a run without rounds."""
    count = config.rounds.count if config.rounds else 0
    return [f"{round_group(number)}/{name}" for number in range(1, count + 1) for name in config.rlhf]


def unrolled(config: Config) -> dict[str, tuple[str, Section]]:
    """Field of the config and section of each stage that stands in rounds, by name: round by round, then the unified.

    Raises CastorError for `rounds.changes` that cannot be made.
    """
    assert config.rounds is not None
    policies, stages, passed_over = round_policies(config), dict[str, tuple[str, Section]](), 0
    for number in range(1, config.rounds.count + 1):
        group, changed = round_group(number), _changed(config, number)
        ((name, run),) = changed.rlhf.items()
        collect, reward, cost = changed.collect, changed.reward, changed.cost
        assert collect is not None
        assert reward is not None
        assert cost is not None
        if number > 1:
            policy = f"stage:{policies[number - 2]}"
            collect = _next_prompts(collect.model_copy(update={"policy": policy}), passed_over)
            run = run.model_copy(update={"policy": run.policy.model_copy(update={"model": policy})})
        passed_over = collect.prompts.limit or 0
        stages[f"{group}/collect"] = "collect", collect
        stages[f"{group}/reward"] = "reward", _on_all_rows(reward, number)
        stages[f"{group}/cost"] = "cost", _on_all_rows(cost, number)
        stages[f"{group}/{name}"] = "rlhf", judged_by(run, group)
    if config.rounds.unified:
        for kind, model in (("reward", config.reward), ("cost", config.cost)):
            assert model is not None
            stages[f"{UNIFIED}/{kind}"] = kind, _on_all_rows(model, config.rounds.count)
    return stages


def judging_group(config: Config) -> str:
    """The group of the reward and the cost model that judge the policies of a run in rounds."""
    assert config.rounds is not None
    return UNIFIED if config.rounds.unified else round_group(config.rounds.count)


def judged_by(section: AnySection, group: str) -> AnySection:
    """The section with the reward and the cost model of `group` in place of stage:reward and stage:cost."""
    names = {f"stage:{kind}": f"stage:{group}/{kind}" for kind in ("reward", "cost")}
    return type(section).model_validate(_renamed(section.model_dump(), names))


def _changed(config: Config, number: int) -> Config:
    """The config with the options that differ in this round."""
    assert config.rounds is not None
    sections = ("collect", "reward", "cost", *(f"rlhf.{name}" for name in config.rlhf))
    values = config.model_dump(mode="json")
    for key, value in config.rounds.changes.get(number, {}).items():
        place = f"rounds.changes.{number}.{key}"
        if not key.startswith(tuple(f"{section}." for section in sections)):
            raise CastorError(f"{place}: only options of {', '.join(sections)} can differ between rounds")
        set_option(values, key, value, place)
    unknown = [key for key in config.rounds.changes if not 1 <= key <= config.rounds.count]
    if unknown:
        raise CastorError(f"rounds.changes.{unknown[0]}: there are only the rounds 1 to {config.rounds.count}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        raise CastorError(f"rounds.changes.{number}: {where}: {message}") from None


def _next_prompts(collect: Collect, passed_over: int) -> Collect:
    """As many prompts as the section asks for, from those that follow the first `passed_over`."""
    assert collect.prompts.limit is not None
    limit = passed_over + collect.prompts.limit - collect.skip
    return collect.model_copy(
        update={"skip": passed_over, "prompts": collect.prompts.model_copy(update={"limit": limit})}
    )


def _on_all_rows(model: Preference, rounds: int) -> Preference:
    """The section with the rows of the first `rounds` rounds in place of stage:collect."""
    data: list[DataSource] = []
    for source in model.data:
        if source.source != COLLECT:
            data.append(source)
            continue
        weight = None if source.weight is None else source.weight / rounds
        for number in range(1, rounds + 1):
            rows = f"stage:{round_group(number)}/collect"
            data.append(source.model_copy(update={"source": rows, "weight": weight}))
    return model.model_copy(update={"data": data})


def _renamed(values: Any, names: dict[str, str]) -> Any:
    if isinstance(values, dict):
        return {key: _renamed(value, names) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, names) for value in values]
    return names.get(values, values) if isinstance(values, str) else values
