"""Processes that are forked from one that has imported what they need behave as those of Python itself."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actors.fork_server import NODE
from actors.forking import forking
from engines.vllm_arguments import VLLM_ENV
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks where there is pidfd_open")
TIMEOUT_S = 120
DRAWN = """
import random, numpy
from ray._raylet import ActorClassID, ObjectID, UniqueID
print(*(kind.from_random().hex() for kind in (ObjectID, UniqueID, ActorClassID)))
print(random.random(), numpy.random.random())
"""
SAID = """
import json, os, sys
print(json.dumps({
    "arguments": sys.argv, "folder": os.getcwd(), "variable": os.environ.get("OF_THIS_ONE"), "name": __name__,
    "parent": os.getppid(), "group": os.getpgid(0) == os.getpid(), "imported": "deepspeed" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def python():
    with forking({}) as made:
        assert made is not None
        yield made


def run(python, *arguments, **options):
    return subprocess.run([python, *arguments], text=True, timeout=TIMEOUT_S, check=False, **options)


def server_of(python):
    folder, deadline, found = str(Path(python).parent), time.monotonic() + TIMEOUT_S, []
    while not found:  # a process that has just been started may have no arguments yet
        assert time.monotonic() < deadline
        found = [each for each in psutil.process_iter(["cmdline", "ppid"])
                 if folder in (each.info["cmdline"] or []) and each.info["ppid"] == os.getpid()]  # fmt: skip
    (server,) = found
    return server.pid


def test_a_script_finds_its_arguments_its_environment_and_its_folder(python, tmp_path):
    (tmp_path / "said.py").write_text(SAID)
    environment = {**os.environ, "OF_THIS_ONE": "yes"}
    done = run(python, "-u", str(tmp_path / "said.py"), "-x", "two words", cwd=tmp_path, env=environment, stdout=-1)
    assert json.loads(done.stdout) == {
        "arguments": [str(tmp_path / "said.py"), "-x", "two words"], "folder": str(tmp_path), "variable": "yes",
        "name": "__main__", "parent": server_of(python), "group": True, "imported": True,
    }  # fmt: skip
    (tmp_path / "beside.py").write_text("number = 3")
    (tmp_path / "imports.py").write_text("import beside, sys; sys.exit(beside.number)")
    assert run(python, "-X", "faulthandler", str(tmp_path / "imports.py")).returncode == 3


@pytest.mark.parametrize(
    ("code", "wanted"),
    [("pass", 0), ("raise SystemExit(7)", 7), ("raise SystemExit('why')", 1), ("import os; os._exit(9)", 9),
     ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)  # fmt: skip
def test_it_ends_as_the_fork_does(python, code, wanted):
    assert run(python, "-c", code).returncode == wanted


def test_what_it_raises_is_said(python):
    done = run(python, "-c", "1 / 0", stderr=-1)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_open_files_keep_their_numbers(python, tmp_path):
    read, write = os.pipe()
    with (tmp_path / "file").open("w") as file:
        code = f"import os; os.write({write}, b'pipe'); os.write({file.fileno()}, b'file')"
        assert run(python, "-c", code, pass_fds=(write, file.fileno())).returncode == 0
    os.close(write)
    assert (os.read(read, 10), os.read(read, 10), (tmp_path / "file").read_text()) == (b"pipe", b"", "file")
    os.close(read)


def test_a_process_has_the_title_that_a_library_gives_it(python):
    for library in ("setproctitle", "ray._raylet"):
        code = f"import importlib, psutil; importlib.import_module('{library}').setproctitle('VLLM::EngineCore');"
        code += "print(psutil.Process().name(), psutil.Process().cmdline()[0])"
        assert run(python, "-c", code, stdout=-1).stdout.split() == ["VLLM::EngineCore"] * 2


def expect_numbers_of_its_own(python, **options):
    first, second = (run(python, "-c", DRAWN, stdout=-1, **options).stdout.split() for _ in range(2))
    assert len(first) == len(second) == 5
    assert not set(first) & set(second)


def test_every_fork_draws_numbers_of_its_own(python):
    expect_numbers_of_its_own(python)


def test_threads_are_those_that_were_asked_for(python):
    for threads in ("1", "2"):
        code = f"import torch; raise SystemExit(torch.get_num_threads() != {threads})"
        assert run(python, "-c", code, env={**os.environ, "OMP_NUM_THREADS": threads}).returncode == 0


def test_no_collection_looks_at_what_was_imported_before_the_fork(python):
    """An engine collects several times while it starts: that took more than half of its start, and memory."""
    code = "import gc; raise SystemExit(gc.get_freeze_count() < 10**5 or not gc.isenabled())"
    assert run(python, "-c", code).returncode == 0


def test_a_process_that_one_spawns_is_a_fork_too(python, tmp_path):
    (tmp_path / "spawns.py").write_text(
        "import multiprocessing, os, sys\n"
        "def work(queue):\n    queue.put((os.getppid(), 'deepspeed' in sys.modules))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue,))\n    process.start()\n"
        "    print(*queue.get(timeout=60))\n    process.join(60)\n    sys.exit(process.exitcode)\n"
    )
    done = run(python, str(tmp_path / "spawns.py"), stdout=-1)
    assert (done.stdout.split(), done.returncode) == ([str(server_of(python)), "True"], 0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_stands_for_it_hands_signals_on(python, how):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    standing = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    assert standing.stdout is not None
    fork = psutil.Process(int(standing.stdout.readline()))
    assert fork.pid != standing.pid
    standing.send_signal(how)
    assert fork.wait(TIMEOUT_S) is None  # no child of this process: that it has ended is all there is to know
    assert standing.wait(TIMEOUT_S) == (128 + how if how == signal.SIGTERM else -how)
    standing.stdout.close()
    assert run(python, "-c", "pass").returncode == 0  # the server goes on


def test_each_node_of_a_machine_has_a_server_of_its_own(python):
    code = "import os, sys; print(os.getppid(), os.environ['RAY_RAYLET_PID'], 'deepspeed' in sys.modules)"
    parents = {}
    for node in ("7", "8", "7", "8"):  # what Ray has read of one must not reach the other's workers
        said = run(python, "-c", code, env=os.environ | {NODE: node}, stdout=-1).stdout.split()
        assert said[1:] == [node, "True"]
        assert parents.setdefault(node, said[0]) == said[0]
    assert len({*parents.values(), str(server_of(python))}) == 3


def test_without_a_server_it_is_python_itself(caplog):
    with forking({}) as python, caplog.at_level(logging.WARNING):
        assert python is not None
        server = psutil.Process(server_of(python))
        standing = subprocess.Popen([python, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1, text=True)
        assert standing.stdout is not None
        assert standing.stdout.readline() == "1\n"
        server.kill()
        deadline = time.monotonic() + TIMEOUT_S
        while server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = run(python, "-c", "import sys; print('torch' in sys.modules)", stdout=-1)
        assert (done.stdout, done.returncode) == ("False\n", 0)
        assert standing.poll() is None  # what was forked before goes on, and so does what stands for it
        standing.communicate("\n", timeout=TIMEOUT_S)
    assert "ended with code -9: they started by themselves" in caplog.text


def test_whoever_waits_for_a_server_that_dies_is_python_itself():
    with forking({}) as python:
        assert python is not None
        server = psutil.Process(server_of(python))
        assert run(python, "-c", "pass").returncode == 0  # its imports are done
        server.suspend()
        waiting = subprocess.Popen([python, "-c", "import sys; print('torch' in sys.modules)"], stdout=-1, text=True)
        deadline = time.monotonic() + TIMEOUT_S
        while len(sockets_of(python, "torch")) < 2:  # the server's own, and one that it has not accepted
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        assert (waiting.communicate(timeout=TIMEOUT_S)[0], waiting.returncode) == ("False\n", 0)


def sockets_of(python, name):
    path = str(Path(python).with_name(name))
    return [line for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(path)]


def test_nothing_is_left_of_a_driver_that_is_killed():
    code = "from actors.forking import forking\nwith forking({}) as python:\n    print(python, flush=True)\n    input()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1, text=True)
    with driver:
        assert driver.stdout is not None
        python = Path(driver.stdout.readline().strip())
        assert run(str(python), "-c", "pass").returncode == 0
        driver.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while python.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_imported_before_ray_is_there_imports_none_of_it_and_starts_no_thread():
    code = (
        "import importlib, itertools, sys, threading\n"
        "from actors.fork_server import BEFORE_RAY, COMMON\n"
        "for library in (*COMMON, *itertools.chain(*BEFORE_RAY.values())):\n    importlib.import_module(library)\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'ray'), threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | VLLM_ENV, text=True, capture_output=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("[] 1\n"), done.stdout + done.stderr


def test_where_an_engine_is_needed_soon_it_is_a_fork_like_any_other():
    environment = {**os.environ, **VLLM_ENV, "OF_THIS_ONE": "yes", "VLLM_LOGGING_LEVEL": "ERROR"}
    code = (
        "import os, sys, vllm.envs\n"
        "print('vllm.entrypoints.llm' in sys.modules, os.environ['OF_THIS_ONE'], vllm.envs.VLLM_LOGGING_LEVEL)"
    )
    with forking({}, engines=True) as python:
        for _ in range(2):
            assert run(python, "-c", code, env=environment, stdout=-1).stdout == "True yes ERROR\n"
        expect_numbers_of_its_own(python, env=environment)
