"""The reference of all options as Markdown pages: one for each section of a config."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from castor.config.presets import Settings, preset_settings
from castor.config.reference import ROOTS, Key, keys

FOLDER = "reference"
_TITLES = {"castor pipeline": "Pipeline", "castor serve": "Serving", "castor assess": "Assessment"}
_HEAD = "---\nhide: [toc]\n---\n\n"


def reference_pages() -> dict[str, str]:
    """Markdown by path: an index with what lies in no section, and a page for each outermost section."""
    pages, index = {}, ["# Reference of all options", "", _INTRODUCTION]
    for command, root in ROOTS.items():
        known, settings = list(keys(root)), preset_settings(root)
        alone = [key for key in known if len(key.path) == 1 and not key.sections]
        index += [f"## {_TITLES[command]}: what `{command}` reads", "", *_table(alone, settings)]
        index += ["| section | meaning |", "|---|---|"]
        for name, group in groupby(known, key=lambda key: key.path[0]):
            options = list(group)
            if options[0].sections:
                page = f"{command.removeprefix('castor ')}/{name}.md"
                pages[f"{FOLDER}/{page}"] = _page(command, options, settings)
                index.append(f"| [`{name}`]({page}) | {_cell(options[0].meaning)} |")
        index.append("")
    return {f"{FOLDER}/index.md": "\n".join(index)} | pages


_INTRODUCTION = """\
Made from the classes in `castor/config/` when these pages are built. `castor explain KEY` says the same in the
terminal, and `castor pipeline CONFIG --dry-run` what of a config differs from the defaults.

A name is what stands in a config, part by part, and on the command line before `=`. `NAME` stands for a name of your
own, such as that of a run under `rlhf`. Presets are the files in `configs/`; what one takes over from a file that it
extends is told of that file. A default `(none)` means that a value must be given where the section is. Where a default
has two parts, the first holds while the section named in the second is left out.
"""


def _page(command: str, options: Sequence[Key], settings: Settings) -> str:
    lines = [f"{_HEAD}# `{options[0].path[0]}` ({command})", ""]
    lines += _table(options[:1], settings)
    for (above, where), group in groupby(options[1:], key=lambda key: (key.path[:-1], key.where)):
        summary = (where.__doc__ or "").strip().split("\n\n")[0]
        lines += [f"## `{'.'.join(above)}`", "", " ".join(summary.split()), "", *_table(group, settings)]
    return "\n".join(lines)


def _table(options: Iterable[Key], settings: Settings) -> list[str]:
    lines = ["| option | type and range | default | meaning, and presets that set it |", "|---|---|---|---|"]
    for key in options:
        kind = f"{key.kind}: {key.allowed}" if key.allowed else key.kind
        presets = [f"`{_code(value)}` in {', '.join(names)}" for value, names in settings.get(key.path, {}).items()]
        meaning = "<br>".join([_cell(key.meaning), *(f"<small>{preset}</small>" for preset in presets)])
        lines.append(
            f'| <a id="{key.dotted}"></a>`{key.dotted}` | {_cell(kind)} | `{_code(key.default)}` | {meaning} |'
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    """`text` inside a table of Markdown, in which nothing of it is markup but its backquotes."""
    inside = text.split("`")
    plain = [escape(part, quote=False).replace("*", "\\*").replace("_", "\\_") for part in inside[::2]]
    parts = [part for pair in zip(plain, [*inside[1::2], ""], strict=False) for part in pair]
    return "`".join(parts[: len(inside)]).replace("|", "\\|")


def _code(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
