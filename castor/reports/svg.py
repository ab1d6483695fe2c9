"""Matplotlib figures as inline SVG that takes its colours from the page, so that one figure serves light and dark."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

INK, MUTED, GRID, SURFACE, ALARM, GOOD = "#1c2024", "#60646c", "#d9dce1", "#fdfdfe", "#b3261e", "#3a7d44"
# Okabe and Ito's colour-blind-safe set; the starting point comes first and is grey.
POLICY_COLOURS = ("#6f7680", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
WIDTH = 5.4  # inches: at the page's column width, 9-point text comes out at about 13 pixels

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
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
    """Have `paint(*axes)` fill a figure `height` inches high, and return it as one `<svg>` element.

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
    """Put a legend in one line above the plot, clear of the data, unless nothing has a label."""
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


def lay_out_bars(axes: Axes, titles: Sequence[str]) -> None:
    """Make room for one row of horizontal bars for each of `titles`, top to bottom, on an axis of shares."""
    axes.set_yticks(range(len(titles)), titles, color=INK)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", visible=False)
    place_legend(axes)


def _inline(svg: str, label: str) -> str:
    """matplotlib's SVG document as an element of a page: no namespaces, ids of its own, colours of the page."""
    root = ElementTree.fromstring(svg)
    prefix = re.sub(r"\W+", "-", label.lower())
    for element in root.iter():
        for child in list(element):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = dict(_for_the_page(*attribute, prefix) for attribute in element.attrib.items())
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _for_the_page(name: str, value: str, prefix: str) -> tuple[str, str]:
    if name == "id":
        return name, f"{prefix}-{value}"
    if name == f"{_XLINK}href":
        return "href", value.replace("#", f"#{prefix}-")
    value = value.replace("url(#", f"url(#{prefix}-")
    if name in ("style", "fill", "stroke"):
        for colour, variable in _CSS_NAMES.items():
            value = value.replace(colour, f"var({variable})")
    # hundredths of a point are finer than any screen, and shrink the page by half
    return name, re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
