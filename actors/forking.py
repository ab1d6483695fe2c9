"""Workers of Ray that need not import torch, vLLM and DeepSpeed: they are forks of a process that has.

On a machine without GPUs these imports are most of the start of every actor. Where there are GPUs every worker is a
process of its own: a fork of one that has looked for them could use none. (multiprocessing's fork server makes
processes of functions; Ray starts its workers by a command.)
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

from actors.fork_server import LIBRARIES, listening
from actors.group import actor_env
from castor.config.training import Resources
from engines.vllm_arguments import VLLM_ENV

log = logging.getLogger(__name__)

HERE = Path(__file__).parent


@contextmanager
def forking(env: Mapping[str, str], *, engines: bool = False) -> Iterator[str | None]:
    """The `py_executable` of a runtime environment while the body runs; None: none but Python itself.

    `env` is common to all workers: what libraries read when they are imported. With `engines` vLLM is imported at once,
    and not for the first worker that asks for it.
    """
    if not (version("torch").endswith("+cpu") and _has_pidfd()):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="castor-fork-", dir="/tmp") as folder:  # the paths of sockets must be short
        python = Path(folder) / "python"
        forked = shlex.join([sys.executable, "-I", "-S", str(HERE / "fork_client.py"), folder])
        python.write_text(f'#!/bin/sh\nexec {forked} "$@"\n', encoding="utf-8")
        python.chmod(0o700)
        if not os.access(python, os.X_OK):  # nothing in /tmp may be executed
            yield None
            return
        with ExitStack() as here:  # whoever connects before the imports are done waits for them
            files = [here.enter_context(listening(Path(folder) / name)).fileno() for name in LIBRARIES]
            soon = "torch,vllm" if engines else "torch"
            command = [sys.executable, "-u", "-P", str(HERE / "fork_server.py"), folder, soon, *map(str, files)]
            environment = os.environ | actor_env(Resources()) | dict(env) | (VLLM_ENV if engines else {})
            server = subprocess.Popen(
                command, stdin=subprocess.PIPE, env=environment, start_new_session=True, pass_fds=files
            )
        try:
            yield str(python)
        finally:
            if (code := server.poll()) is not None:
                log.warning(
                    "the process that workers are forked from ended with code %d: they started by themselves", code
                )
            assert server.stdin is not None
            server.stdin.close()  # its own forks, one for each set of libraries, end with it
            server.kill()  # it may be importing for a worker that nobody waits for any more
            server.wait()


def _has_pidfd() -> bool:
    """A handle of a process that ends: Linux has it since 5.3, but not every sandbox."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True
