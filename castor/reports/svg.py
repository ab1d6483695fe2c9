"""Matplotlib figures as inline SVG that takes its colours from the page, so that one figure serves light and dark."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE, ALARM, GOOD = "#1c2024", "#60646c", "#d9dce1", "#fdfdfe", "#b3261e", "#3a7d44"
# Okabe and Ito's colour-blind-safe set; the starting point comes first and is grey.
POLICY_COLOURS = ("#6f7680", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
WIDTH = 5.4  # inches: at the page's column width, 9-point text comes out at about 13 pixels

_CSS_NAMES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    ALARM: "--alarm",
    GOOD: "--good",
    **{colour: f"--p{index}" for index, colour in enumerate(POLICY_COLOURS)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(
    label: str,
    height: float,
    paint: Callable[..., None],
    height_ratios: Sequence[float] = (1.0,),
    share_y: bool = False,
) -> Markup:
    """Has `paint(*axes)` fill a figure `height` inches high and returns it as one `<svg>` element.

    The panels, one for each of `height_ratios`, stand one under the other on a common x axis. `label` is the figure's
    name for screen readers and makes its ids unique within a page.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(
            len(height_ratios), squeeze=False, sharex=True, sharey=share_y, height_ratios=height_ratios
        )
        paint(*axes[:, 0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(buffer.getvalue(), label))


def place_legend(axes: Axes, columns: int = 4) -> None:
    """A legend in one line above the plot, clear of the data; nothing when there is nothing to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=columns,
            borderaxespad=0.2,
            handlelength=1.4,
            columnspacing=1.1,
            handletextpad=0.5,
        )


def _inline(svg: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", body)
    body = body.replace("xlink:href=", "href=")
    prefix = re.sub(r"\W+", "-", label.lower())
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'(style|fill|stroke)="[^"]*"', _use_page_colours, body)
    body = re.sub(r'="[^"]*"', _round_numbers, body)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None, "matplotlib wrote an SVG without a viewBox"
    return f'<svg {view[0]} role="img" aria-label="{escape(label)}">{body[body.index(">") + 1 :]}'


def _round_numbers(attribute: re.Match[str]) -> str:
    """Hundredths of a point are finer than any screen, and shrink the page by half."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute[0])


def _use_page_colours(attribute: re.Match[str]) -> str:
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var({_CSS_NAMES[found[0]]})" if found[0] in _CSS_NAMES else found[0],
        attribute[0],
    )
