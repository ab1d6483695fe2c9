"""Text on streams whose encoding lacks some of its characters: ASCII and Latin-1 terminals, logs of old systems."""

import codecs
import io
from typing import TextIO

READABLE = "castor.readable"
"""Name of the error handler, for the argument `errors` of `open` and its like."""

_SPELLED_OUT = {  # of what Castor itself prints
    "λ": "lambda", "…": "...", "–": "-", "—": "-", "\N{MINUS SIGN}": "-", "\N{NO-BREAK SPACE}": " ", "’": "'", "‘": "'",
    "“": '"', "”": '"', "·": "*", "•": "*", "×": "x", "±": "+/-", "≥": ">=", "≤": "<=", "→": "->", "←": "<-", "✓": "ok",
}  # fmt: skip


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    """Signs that Castor prints as words or ASCII, every other character as its escape, which can be told from a '?'."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    escaped = (_SPELLED_OUT.get(each) or each.encode("ascii", "backslashreplace").decode("ascii") for each in missing)
    return "".join(escaped), error.end


codecs.register_error(READABLE, _spelled_out)


def encode_readably(*streams: TextIO) -> None:
    """Let `streams` replace what their encoding lacks instead of raising UnicodeEncodeError."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # what a notebook or a test puts in its place encodes nothing
            stream.reconfigure(errors=READABLE)
