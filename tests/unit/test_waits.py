"""No wait for another process is without a bound."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGES = ("castor", "engines", "actors", "trainers", "serve")
WAITS = {("ray", "get"), ("ray", "wait"), ("process", "wait"), ("process", "communicate"), ("subprocess", "run")}


def unbounded(source):
    """Line numbers of calls that wait for something and have no `timeout`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)) if (module, name) in WAITS:
                if not any(each.arg == "timeout" and ast.unparse(each.value) != "None" for each in node.keywords):
                    yield node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_every_wait_has_a_timeout(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in unbounded(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_a_wait_without_one_is_seen():
    source = "import ray\nray.get(ref)\nray.wait([ref], timeout=1)\nray.get(ref, timeout=None)\nray.wait([ref])\n"
    assert list(unbounded(source)) == [2, 4, 5]
