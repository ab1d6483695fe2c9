"""Functions of the user's own, named `module:function` in a config."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from castor.io.errors import CastorError


def add_to_import_path(directory: str = "") -> None:
    """Let imports find a module in `directory`; "" is the working directory, as for `python -m`."""
    if directory not in sys.path:
        sys.path.insert(0, directory)


def load_function(name: str, directory: Path | None = None) -> Callable[..., Any]:
    """The function named `module:function`, from this process's working directory, `directory`, or what is installed.

    Raises CastorError when there is no such module or function, and, with the line, when importing the module fails.
    """
    module_name, _, function_name = name.partition(":")
    add_to_import_path()
    if directory is not None:
        add_to_import_path(str(directory))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CastorError(f"{name}: {error}; start castor in the folder of the module, or install it") from error
    except Exception as error:
        raise CastorError(f"{name} cannot be imported: {told_with_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise CastorError(f"{name}: module {module_name} has no function {function_name}; check the function's name")
    return function


def call_function(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns. Raises CastorError with the message, file and line of whatever it raises."""
    try:
        return function(*arguments)
    except CastorError:
        raise
    except Exception as error:
        raise CastorError(f"{name} failed: {told_with_line(error)}") from error


def iterated(name: str, values: Iterable[Any]) -> Iterator[Any]:
    """`values`, which the function `name` has returned, where it may be a generator: raises as `call_function`."""
    try:
        yield from values
    except CastorError:
        raise
    except Exception as error:
        raise CastorError(f"{name} failed: {told_with_line(error)}") from error


def function_finding(name: str, takes: Sequence[str]) -> str | None:
    """What is wrong with a function that will be called with the arguments `takes`; None: it fits. It is imported."""
    try:
        signature = inspect.signature(load_function(name))
    except CastorError as error:
        return str(error)
    except (TypeError, ValueError):  # of C, which does not say what it takes
        return None
    try:
        signature.bind(*takes)
    except TypeError as error:
        return f"{name}{signature} will be called with ({', '.join(takes)}): {error}"
    return None


def told_with_line(error: Exception) -> str:
    """The type and message of an exception of the user's own code, and the file and line that raised it.

    The line is the innermost one outside installed packages and the standard library: the user's own.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_installed(frame.filename) and frame.filename != __file__]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    message = str(error).strip() or "without a message"
    where = f" ({own[-1].filename}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    return f"{type(error).__name__}: {message}{where}"


def _is_installed(file: str) -> bool:
    return "site-packages" in file or file.startswith(("<frozen", sys.base_prefix))
