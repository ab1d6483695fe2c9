"""The locks in requirements/ hold what pyproject.toml asks for, hashed, and name no place to get it from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"


def locked(stack: str) -> dict[str, list[Requirement]]:
    """The locked requirements by name; a name may be locked once per environment marker."""
    lines = (REQUIREMENTS / f"{stack}.lock").read_text().replace("\\\n", " ").splitlines()
    by_name: dict[str, list[Requirement]] = {}
    for line in lines:
        requirement, *hashes = line.split("--hash=sha256:")
        assert hashes, f"{stack}.lock: not hashed: {line}"
        parsed = Requirement(requirement.strip())
        by_name.setdefault(canonicalize_name(parsed.name), []).append(parsed)
    return by_name


def asked_for(stack: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(text) for text in project["dependencies"] + extras[stack] + extras["dev"] + extras["aws"]]
    return [requirement for requirement in asked if requirement.name != project["name"]]


@pytest.mark.parametrize("stack", ["cpu", "gpu"])
def test_the_lock_satisfies_pyproject(stack: str) -> None:
    lock = locked(stack)
    torch = Requirement((REQUIREMENTS / "torch-cpu.txt").read_text().strip())
    if stack == "cpu":
        lock["torch"] = [torch]
    for requirement in asked_for(stack):
        found = lock.get(canonicalize_name(requirement.name))
        assert found, f"{stack}.lock lacks {requirement}: run `make lock`"
        for pin in found:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), (
                f"{stack}.lock has {pin}, not {requirement}: run `make lock`"
            )


def test_the_lock_of_the_documentation_satisfies_its_extra() -> None:
    lock = locked("docs")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in map(Requirement, extras["docs"]):
        for pin in lock[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(next(iter(pin.specifier)).version), f"{pin}: run `make lock`"


@pytest.mark.parametrize("lock", ["bootstrap", "cpu", "gpu", "docs"])
def test_a_lock_names_no_index_and_no_path(lock: str) -> None:
    text = (REQUIREMENTS / f"{lock}.lock").read_text()
    assert not re.search(r"://|@ |^\s*(-i|-f|-e|--index|--extra-index|--find-links)", text, re.MULTILINE)


def test_the_cpu_lock_holds_neither_torch_nor_cuda() -> None:
    cuda = re.compile(r"torch$|torchvision$|torchaudio$|nvidia-|cuda-|vllm$")
    assert [name for name in locked("cpu") if cuda.match(name)] == []
    # torchvision: an engine on a GPU imports it when it warms up, whatever its model
    assert {"torch", "torchvision", "vllm", "nvidia-cublas"} <= locked("gpu").keys()
