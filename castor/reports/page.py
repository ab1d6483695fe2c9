"""What every HTML page has in common: its templates, its figures, and how text from a data set is made fit to show."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from castor.reports.wording import duration, interval, number

SHOWN_CHARACTERS = 900
# Everything a terminal or a browser would act on instead of showing: controls, lone surrogates, direction overrides.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Figure:
    """One figure on the page with the line that says how to read it."""

    title: str
    svg: Markup
    note: str


def render(template: str, folder: Path | None = None, **values: Any) -> str:
    """The page that a template makes of `values`: one of this package, or of `folder`, which may extend these.

    Raises jinja2.UndefinedError for a missing value.
    """
    folders = [Path(__file__).parent / "templates", *([folder] if folder else [])]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "duration": duration, "shown": shown}
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(**values)


def shown(text: str) -> str:
    """`text` cut to what a card holds, with characters that cannot be shown replaced by U+FFFD."""
    text = _UNSHOWABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} … ({len(text)} characters)"


def breakable(text: str) -> Markup:
    """`text` in HTML, which may go on in another line after a comma, a slash or an underscore: names are long."""
    return Markup(re.sub(r"([,/_])(?=\w)", r"\1<wbr>", str(escape(text))))
