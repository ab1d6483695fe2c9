"""Weights from a folder: announced with the digest of the very tensors in it, in the order engines read them in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from castor.io.errors import CastorError
from engines.weights.digest import Digest
from engines.weights.folder import Receiver, folder_update, shapes

FILES = {
    "model-00002-of-00002.safetensors": {"z.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3)},
    "model-00001-of-00002.safetensors": {
        "m.weight": torch.arange(4, dtype=torch.bfloat16), "b.weight": torch.tensor([1, -2], dtype=torch.int8),
    },
}  # fmt: skip
ORDER = ["b.weight", "m.weight", "a.bias", "z.weight"]  # by file, and by name within


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tensors in FILES.items():
        save_file(tensors, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def digest_of(names: list[str]) -> str:
    tensors = {name: tensor for file in FILES.values() for name, tensor in file.items()}
    digest = Digest()
    for _ in digest.adding((name, tensors[name]) for name in names):
        pass
    return digest.over(None)


def test_the_digest_is_of_the_tensors_in_their_order(folder: Path) -> None:
    update = folder_update(folder, 5)
    assert (update.version, update.transport, update.base) == (5, "folder", None)
    assert update.pieces == [str(folder / name) for name in sorted(FILES)]
    assert update.digest == digest_of(ORDER)
    assert update.digest != digest_of(sorted(ORDER))


def test_an_engine_that_reads_the_files_comes_to_the_same_digest(folder: Path) -> None:
    update, digest, seen = folder_update(folder, 1), Digest(), list[str]()

    def load(tensors: object) -> None:
        seen.extend(name for name, _ in digest.adding(tensors))  # type: ignore[arg-type]

    receiver = Receiver.__new__(Receiver)
    for piece in receiver.pieces(update, in_process=False):
        receiver.receive(piece, load)
    assert seen == ORDER
    update.check((1, digest.over(None)))


def test_a_bit_that_has_changed_in_a_file_is_noticed(folder: Path) -> None:
    before = folder_update(folder, 1)
    for name, tensors in FILES.items():
        path = folder / name
        content = path.read_bytes()
        start = len(content) - sum(each.numel() * each.itemsize for each in tensors.values())
        for byte in range(start, len(content)):
            changed = bytearray(content)
            changed[byte] ^= 1 << byte % 8
            path.write_bytes(changed)
            with pytest.raises(RuntimeError, match="the weights did not arrive"):
                before.check((1, folder_update(folder, 1).digest))
        path.write_bytes(content)
    assert folder_update(folder, 1) == before


def test_files_that_come_or_go_or_change_places_are_noticed(folder: Path) -> None:
    found = {folder_update(folder, 1).digest}
    extra = folder / "model-00003-of-00003.safetensors"
    save_file({"more": torch.zeros(1)}, extra)
    found.add(folder_update(folder, 1).digest)
    extra.unlink()
    first, second = (folder / name for name in sorted(FILES))
    first.rename(folder / "x.safetensors")
    found.add(folder_update(folder, 1).digest)  # read after the other one
    second.unlink()
    found.add(folder_update(folder, 1).digest)
    assert len(found) == 4


def test_paths_do_not_depend_on_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert folder_update(Path(folder.name), 1) == folder_update(folder, 1)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CastorError, match=r"holds no weights \(\*\.safetensors\)"):
        folder_update(tmp_path, 1)


def test_shapes_are_those_of_the_tensors(folder: Path) -> None:
    tensors: dict[str, Tensor] = {name: each for file in FILES.values() for name, each in file.items()}
    assert shapes(folder) == {name: tuple(each.shape) for name, each in tensors.items()}
