"""The file of versions: what a replica that starts later finds in it."""

from pathlib import Path

import pytest

from serve.versions import Version, Versions

NEW = Version(3, "/models/new", "d" * 32, ("/models/new/a.safetensors", "/models/new/b.safetensors"))


def test_versions_are_kept_by_policy(tmp_path: Path) -> None:
    path = tmp_path / "versions.json"
    versions = Versions(path)
    assert versions.of("lag") is None
    versions.put("lag", NEW)
    versions.put("round-1/ppo", Version(1, "/models/other", None))
    assert Versions(path).of("lag") == NEW
    assert Versions(path).of("round-1/ppo") == Version(1, "/models/other", None)
    assert Versions(path).of("ppo") is None
    versions.put("lag", Version(4, "/models/newer", "e" * 32, NEW.files))
    assert (Versions(path).of("lag") or NEW).number == 4
    assert Versions(path).of("round-1/ppo") is not None


def test_a_server_that_starts_forgets_them(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions.json")
    versions.forget()
    versions.put("lag", NEW)
    versions.forget()
    assert versions.of("lag") is None


def test_a_damaged_file_is_no_version(tmp_path: Path) -> None:
    """It must not be taken for `what it was started with`."""
    versions = Versions(tmp_path / "versions.json")
    versions.put("lag", NEW)
    for content in ("", versions.path.read_text()[:-20], "{"):
        versions.path.write_text(content)
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            versions.of("lag")


def test_names_and_updates() -> None:
    assert NEW.name("ppo_lag") == "ppo_lag@3"
    update = NEW.update()
    assert (update.version, update.digest, update.transport) == (3, NEW.digest, "folder")
    assert update.pieces == list(NEW.files)
    update.check((3, "d" * 32))
    for proof in ((3, "e" * 32), (2, "d" * 32)):
        with pytest.raises(RuntimeError, match="the weights did not arrive"):
            update.check(proof)
