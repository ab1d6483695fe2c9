"""`castor explain KEY`: what an option is, in the terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.config.presets import Settings
    from castor.config.reference import Key

WIDTH = 110
KeyName = Annotated[
    str | None,
    typer.Argument(metavar="[KEY]", help="a dotted name or its end, e.g. rlhf.multipliers.rule or optimizer.lr"),
]


def explain(key: KeyName = None) -> None:
    """What an option means, its type, range and default, and which presets set it; of a section, what lies in it."""
    from castor.config.lookup import below, find, nearest
    from castor.config.presets import preset_settings
    from castor.config.reference import ROOTS, keys

    known = {command: list(keys(root)) for command, root in ROOTS.items()}
    if key is None:
        for command, options in known.items():
            print(f"{command}, its sections and options:")
            print(_list([option for option in options if len(option.path) == 1]), end="\n\n")
        return
    said = False
    for command, root in ROOTS.items():
        found = find(key, known[command])
        settings = preset_settings(root) if found else {}
        for same in _of_one_meaning(found):
            print(_told(same, settings, command), end="\n\n")
            said = True
        if len(found) == 1 and (options := below(found[0], known[command])):
            print(f"In {'.'.join(found[0].below)}:\n{_list(options)}", end="\n\n")
    if not said:
        near = nearest(key, [option for options in known.values() for option in options])
        hint = f"did you mean {near}?" if near else "castor explain lists the sections"
        raise CastorError(f"there is no option {key}: {hint}")


def _of_one_meaning(found: list[Key]) -> list[list[Key]]:
    """`found`, those together that are the same option of the same section in several places."""
    groups: dict[tuple[type, str], list[Key]] = {}
    for key in found:
        groups.setdefault((key.where, key.path[-1]), []).append(key)
    return list(groups.values())


def _told(same: list[Key], settings: Settings, command: str) -> str:
    first = same[0]
    lines = [f"{first.dotted if len(same) == 1 else first.path[-1]}  ({command})"]
    lines += _wrapped(first.meaning, "  ")
    lines.append(f"  {'type':9}{first.kind}")
    if first.allowed:
        lines += _wrapped(first.allowed, f"  {'allowed':9}")
    if len(same) == 1:
        return "\n".join([*lines, *_default_and_presets(first, settings, "  ")])
    for key in same:
        lines += [f"  {key.dotted}", *_default_and_presets(key, settings, "    ")]
    return "\n".join(lines)


def _default_and_presets(key: Key, settings: Settings, indent: str) -> list[str]:
    lines = _wrapped(key.default, f"{indent}{'default':9}")
    for value, presets in settings.get(key.path, {}).items():
        lines += _wrapped(f"{value} ({', '.join(presets)})", f"{indent}{'presets':9}")
    return lines


def _list(options: list[Key]) -> str:
    wide = max(len(option.path[-1]) for option in options) + 2
    return "\n".join("\n".join(_wrapped(option.meaning, f"  {option.path[-1]:{wide}}")) for option in options)


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
