"""A model by its name: a folder or a hub id, the revision of the latter, and whether code that it ships may run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from castor.io.errors import CastorError, first_line

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
CARD, READING = "README.md", "How to read it"  # a model's card, and its section that does not hold for an export
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")  # config, tokenizer, code
WEIGHTS, PICKLES = ("*.safetensors",), ("pytorch_model*.bin",)
ELSEWHERE = ("*/*.safetensors", "*/*.bin", "consolidated*")  # the same weights again, in other programs' layouts


@dataclass(frozen=True)
class ModelReference:
    """What every loader of configs, tokenizers and weights is given. Imports nothing heavy."""

    name: str  # a folder, or a hub id
    revision: str | None = None  # of a hub id; None: its newest, when it is first fetched to a node
    trust_remote_code: bool = False

    @classmethod
    def of(cls, model: ModelLike) -> ModelReference:
        """The reference itself, or one to a folder or hub id whose code is not trusted."""
        return model if isinstance(model, ModelReference) else cls(str(model))

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def local(self, *, weights: bool = True, pickled: bool = False) -> Path:
        """The model's folder on this node, as an absolute path; a hub id is fetched where the node lacks its files.

        Args:
            weights: of a hub id, also fetch the weights, and not only config, tokenizer and code.
            pickled: of a hub id without safetensors, fetch `pytorch_model.bin` as weights.

        Raises:
            CastorError: there is no such folder, and no hub id that can be had.

        """
        folder = self._folder()
        if folder is not None:
            return folder
        wanted = TEXTS + (WEIGHTS if weights else ())
        try:
            snapshot = self._cached(wanted, whole=True) or self._fetched(wanted)
            if weights and pickled and not _has_weights(snapshot):
                snapshot = self._cached(TEXTS + PICKLES, whole=True) or self._fetched(TEXTS + PICKLES)
        except ValueError as error:
            raise CastorError(f"there is no model at {str(self)!r}: it is no folder and no hub id") from error
        except OSError as error:
            raise CastorError(
                f"there is no model at {str(self)!r}: it is no folder, and no hub id that can be had: "
                f"{first_line(error)}"
            ) from error
        return snapshot

    def here(self) -> Path | None:
        """The model's folder on this node, without its weights perhaps; None where it would have to be fetched.

        Raises CastorError for a folder with a revision.
        """
        try:
            return self._folder() or self._cached(TEXTS, whole=False)
        except ValueError:  # no hub id either
            return None

    def load_error(self, error: Exception, what: str) -> CastorError:
        """One sentence for an error of transformers while it loaded this model; `what` says what it could not do."""
        if "trust_remote_code" in str(error) and not self.trust_remote_code:
            return CastorError(
                f"{self} ships code of its own, which is not run unless it is trusted: look at that code, then write "
                f"model: {{source: {self.name}, trust_remote_code: true}} (on a command line: --trust-remote-code)"
            )
        return CastorError(f"{str(self)!r} {what}: {first_line(error)}")

    def _folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        if not path.is_dir():
            return None
        if self.revision is not None:
            raise CastorError(f"{self.name} is a folder, which has no revision {self.revision!r}: leave revision out")
        return path.absolute()

    def _cached(self, wanted: Sequence[str], *, whole: bool) -> Path | None:
        """The hub id's folder in the node's cache; with `whole` only if it is known to hold every wanted file."""
        from huggingface_hub import get_cached_repo_tree, snapshot_download
        from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

        try:
            if whole:
                get_cached_repo_tree(self.name, revision=self.revision)
            found = snapshot_download(
                self.name,
                revision=self.revision,
                local_files_only=True,
                allow_patterns=list(wanted),
                ignore_patterns=list(ELSEWHERE),
            )
        except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
            return None
        return Path(str(found))

    def _fetched(self, wanted: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            self.name, revision=self.revision, allow_patterns=list(wanted), ignore_patterns=list(ELSEWHERE)
        )
        return Path(str(found))


ModelLike: TypeAlias = ModelReference | Path | str  # what loaders take; a path or an id is not trusted


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SAFETENSORS, f"{SAFETENSORS}.index.json"))
