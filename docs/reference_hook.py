"""A hook of MkDocs: the reference of all options as pages, and files of the repository that pages link to."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from castor.reports.reference import reference_pages  # noqa: E402

_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")  # a link from docs/ to a file elsewhere in the repository


def on_config(config: Any) -> Any:
    """Put the pages of the reference at the end of the navigation."""
    pages = reference_pages()
    parts: dict[str, list[Any]] = {}
    for page in pages:
        _, *inner, _ = page.split("/")
        parts.setdefault(inner[0] if inner else "", []).append({Path(page).stem: page})
    groups = [{f"castor {name}": entries} for name, entries in parts.items() if name]
    config.nav.append({"Reference": ["reference/index.md", *groups]})
    config.extra["reference"] = pages
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the reference, and under `files/` what pages link to outside of docs/."""
    for page, text in config.extra["reference"].items():
        files.append(File.generated(config, page, content=text))
    linked = {name for page in Path(config.docs_dir).glob("*.md") for name in _OUTSIDE.findall(page.read_text("utf-8"))}
    for name in sorted(name for name in linked if (ROOT / name).is_file()):
        files.append(File.generated(config, f"files/{name}.txt", content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to the repository's files lead to the copies of them."""
    return _OUTSIDE.sub(r"](files/\1.txt", markdown)
