"""From YAML files and dotted overrides to a validated `Config`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from castor.config.base import Section
from castor.config.extend import laid_over, without_removed
from castor.config.pipeline import Config
from castor.config.yaml_core import parse, plain_scalar
from castor.io.errors import CastorError
from castor.io.files import local_path

Validated = TypeVar("Validated", bound=Section)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` and what it extends, apply overrides in order, and validate.

    An override is a key with a value, such as `rlhf.ppo_lag.learner.engine.optimizer.lr=1e-6`, or a YAML file that is
    laid over the config as `castor.config.extend` says. A value is read as in a file (`castor.config.yaml_core`), but
    other text than a list, a mapping or a quoted text needs no quotes; `a.b=null` removes a section. Raises CastorError
    with one line per finding.
    """
    return load_file(Config, path, overrides)


def load_file(kind: type[Validated], path: Path, overrides: Sequence[str] = ()) -> Validated:
    """A section that has a file of its own, read as `load_config` reads a config."""
    path = local_path(path)
    values = laid_over({}, path, _read)
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            values = laid_over(values, local_path(override), _read)
        else:
            _apply(values, override)
    return _validated(kind, without_removed(values), f"{path}: ")


def load_section(kind: type[Validated], values: dict[str, Any], overrides: Sequence[str]) -> Validated:
    """A section from `values` and overrides alone. Raises CastorError with one line per finding."""
    for override in overrides:
        _apply(values, override)
    return _validated(kind, values, "")


def _validated(kind: type[Validated], values: dict[str, Any], where: str) -> Validated:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise CastorError("\n".join(f"{where}{_place(e['loc'])}{_message(e)}" for e in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved config, defaults included, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CastorError(f"no config file at {path}: give the path of a YAML file, e.g. configs/demo.yaml") from None
    except IsADirectoryError:
        raise CastorError(f"{path} is a folder: give the path of a YAML file in it") from None
    except OSError as error:
        raise CastorError(f"{path} cannot be read ({error.strerror}): give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise CastorError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CastorError(f"{path}{where}: not valid YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise CastorError(f"{path} holds no mapping of sections: see configs/demo.yaml for the shape")
    return values


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise CastorError(f"override {override!r} is not of the form section.key=value")
    set_option(values, key, _override_value(text, override), f"override {override!r}")


def _override_value(text: str, override: str) -> Any:
    """A list, a mapping or a quoted text where `text` starts as one, else a plain scalar, whatever it contains."""
    bare = text.strip()
    if not bare.startswith(("[", "{", '"', "'")):
        value = plain_scalar(bare)
        return text if isinstance(value, str) else value
    try:
        return parse(bare)
    except yaml.YAMLError as error:
        raise CastorError(
            f"override {override!r}: the value is not valid YAML ({_problem(error)}): a text that starts with "
            f"{bare[0]} must stand in quotes within the quotes of the shell, key='\"text\"'"
        ) from None


def set_option(values: dict[str, Any], key: str, value: Any, what: str) -> None:
    """Put `value` at the dotted `key` of nested `values`. Raises CastorError, about `what`, where that is no place."""
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = {}
        elif not isinstance(child, dict):
            raise CastorError(f"{what}: {parent!r} is not a section")
        # YAML anchors make two sections one object in memory: what is overridden must not leak into the other
        node[parent] = dict(child)
        node = node[parent]
    node[last] = value


def _place(location: tuple[int | str, ...]) -> str:
    place = ".".join(str(part) for part in location)
    return f"{place}: " if place else ""


def _message(error: Any) -> str:
    message, value = str(error["msg"]).removeprefix("Value error, "), error["input"]
    if error["type"] == "string_type" and isinstance(value, list | dict):
        return f"{message}: put it in quotes if it is not meant as a {'list' if isinstance(value, list) else 'mapping'}"
    return f"{message}: {value!r}" if error["type"].endswith("_parsing") else message
