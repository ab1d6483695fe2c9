"""Functions of the user's own, named `module:function` in a config."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from castor.io.errors import CastorError


def add_to_import_path(directory: str = "") -> None:
    """Let imports find a module in `directory`; "" is the working directory, as for `python -m`."""
    if directory not in sys.path:
        sys.path.insert(0, directory)


def load_function(name: str, directory: Path | None = None) -> Callable[..., Any]:
    """The function named `module:function`, from this process's working directory, `directory`, or what is installed.

    Raises CastorError when there is no such module or function. What the module raises when it is imported propagates.
    """
    module_name, _, function_name = name.partition(":")
    add_to_import_path()
    if directory is not None:
        add_to_import_path(str(directory))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CastorError(f"{name}: {error}; start castor in the folder of the module, or install it") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise CastorError(f"{name}: module {module_name} has no function {function_name}; check the function's name")
    return function
