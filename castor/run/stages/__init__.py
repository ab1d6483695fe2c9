"""The kinds of stages: every module of this folder that holds a `Stage` is one."""

from __future__ import annotations

import importlib
import pkgutil

from castor.run.stages.stage import Stage


def kinds() -> dict[str, type[Stage]]:
    """Every kind by the field of the config that holds its sections."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {kind.field: kind for kind in found if issubclass(kind, Stage) and "field" in vars(kind)}
