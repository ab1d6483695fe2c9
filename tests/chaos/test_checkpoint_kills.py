"""Whatever moment a writer is killed at, on whatever disk: the newest complete checkpoint loads."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

KILLS = 30
SCRIPT = """
import json, os, random, signal, subprocess, sys, time
from contextlib import suppress
from pathlib import Path
from castor.io.checkpoint import mark_files, repair_folders, verify_folder
from castor.io.errors import CastorError
from castor.run.checkpoints import Checkpoints
from castor.run.files import TrainingFiles

place, kills, disk = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
checkpoints, choice = Checkpoints(TrainingFiles(place / "ppo.training")), random.Random(0)


def write(step):
    staged = checkpoints.stage(step)
    try:
        parts = [staged.aside / f"part-{n}" for n in range(3)]
        for part in parts:
            part.write_bytes(step.to_bytes(4, "big") * 5000)
        checkpoints.commit(staged, step, mark_files(staged.aside, parts), keep=2, every=None)
    finally:
        staged.discard()


def write_for_ever(failures):
    step = newest()
    while True:
        try:
            write(step + 1)
        except (CastorError, OSError) as error:
            os.write(failures, b"x")
            continue
        step += 1


def newest():
    found = checkpoints.newest()
    if found is None:
        return 0
    verify_folder(found.folder)
    assert (found.folder / "part-0").read_bytes()[:4] == found.step.to_bytes(4, "big")
    return found.step


def refuse():
    if disk == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    elif disk == "full":
        with open(place / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(1024))


def accept():
    if disk == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    (place / "ballast").unlink(missing_ok=True)


began = time.perf_counter()
write(1)
whole = time.perf_counter() - began
number, died, failed, before, cut_short = 0, 0, 0, 1, 0
while number < kills or (number < 40 * kills and not (cut_short > 3 and before > 5 and (failed or disk == "large"))):
    if number % 3 == 2:
        refuse()
    reading, writing = os.pipe()
    starting, started = os.pipe()
    child = os.fork()
    if not child:
        os.write(started, b"x")
        write_for_ever(writing)
    os.close(writing)
    os.close(started)
    os.read(starting, 1)
    os.close(starting)
    time.sleep(choice.uniform(0.0, 8 * whole))  # in the midst of one of the first checkpoints
    os.kill(child, signal.SIGKILL)
    died += os.waitpid(child, 0)[1] == signal.SIGKILL
    failed += bool(os.read(reading, 1))
    os.close(reading)
    newest()
    accept()
    cut_short += any(place.rglob(".*.tmp"))
    repair_folders(place)
    checkpoints.prune(2)  # as a run does that goes on
    step = newest()
    assert step >= before, (step, before)
    before, number = step, number + 1
print(json.dumps({"kills": number, "died": died, "failed": failed, "steps": before, "cut short": cut_short}))
"""


@pytest.mark.parametrize("disk", ["large", "full", "read-only"])
def test_the_newest_checkpoint_loads_after_every_kill(tmp_path, disk):
    """The disks are file systems of their own: `full` has room for three checkpoints, of which two are kept, and every
    third time for none. There are more kills until enough of them have struck.
    """
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(KILLS), disk]
    if disk != "large":
        own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        if shutil.which("unshare") is None or subprocess.run([*own, "true"], check=False).returncode:
            pytest.skip("this machine gives no file system of one's own")
        size = "230k" if disk == "full" else "64m"
        command = [*own, f'mount -t tmpfs -o size={size} tmpfs {tmp_path} && exec "$@"', "sh", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["died"] == seen["kills"] >= KILLS
    assert seen["steps"] > 5
    assert seen["cut short"] > 3  # a checkpoint was being made
    assert (seen["failed"] > 0) == (disk != "large")
