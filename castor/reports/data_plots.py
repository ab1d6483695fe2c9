"""The figures of the data page. Each function returns inline SVG that stands beside a table of the same numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from castor.data.inspect.lengths import Lengths
from castor.reports.svg import ALARM, INK, POLICY_COLOURS, draw, lay_out_bars, place_legend
from castor.statistics.bootstrap import Measure

_GREY, _ORANGE, _BLUE, _GREEN, _YELLOW = (POLICY_COLOURS[index] for index in (0, 1, 2, 3, 5))
_SEVERITY_COLOURS = (_GREY, _YELLOW, _ORANGE, ALARM)
_GROUP_COLOURS = {"all": _GREY, "safe": _GREEN, "unsafe": _ORANGE}
_SMALLEST_SHOWN = 0.05  # correlations nearer to 0 are not printed into their squares


def intervals(label: str, axis: str, figures: Mapping[str, Measure], mark: float | None, is_share: bool) -> Markup:
    """One dot with its interval a figure, in the order given; `mark` draws the line that means "no relation".

    What the figures were taken over stands beside their names where it differs.
    """

    def paint(axes: Axes) -> None:
        at = np.arange(len(figures))
        values = np.array([figure.value for figure in figures.values()])
        ends = np.array([(figure.value - figure.low, figure.high - figure.value) for figure in figures.values()]).T
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle="--")
        axes.errorbar(values, at, xerr=ends, fmt="o", color=_BLUE, ecolor=_BLUE, elinewidth=1.6, markersize=5)
        same = len({figure.n for figure in figures.values()}) == 1
        titles = [name if same else f"{name}  n={figure.n:,}" for name, figure in figures.items()]
        axes.set_yticks(at, titles, color=INK)
        axes.set_ylim(len(figures) - 0.4, -0.6)
        axes.set_xlabel(axis)
        if is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xlim(left=0.0 if mark is None else None)
        axes.grid(axis="y", visible=False)

    return draw(label, 0.8 + 0.24 * len(figures), paint)


def correlation_map(label: str, names: Sequence[str], table: Sequence[Sequence[float | None]]) -> Markup:
    """A square of numbers from -1 to 1: orange above 0, blue below, the fuller the farther from 0; None is left out."""

    def paint(axes: Axes) -> None:
        for row, line in enumerate(table):
            for column, value in enumerate(line):
                if value is None or row == column:
                    continue
                colour = _ORANGE if value > 0 else _BLUE
                square = Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, linewidth=0, color=colour)
                square.set_alpha(min(1.0, abs(value) ** 0.7))
                axes.add_patch(square)
                if abs(value) >= _SMALLEST_SHOWN:
                    text = f"{value:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
                    axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=INK)
        ticks = range(len(names))
        axes.set_xticks(ticks, [str(index + 1) for index in ticks])
        axes.set_yticks(ticks, [f"{name}  {index + 1}" for index, name in enumerate(names)], color=INK, fontsize=7.5)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False)

    return draw(label, 0.7 + 0.21 * len(names), paint)


def severity_bars(label: str, levels: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Markup:
    """One bar a group, divided by the shares of its responses at each severity level. `counts[group][level]`."""

    def paint(axes: Axes) -> None:
        table = np.array(list(counts.values()), dtype=np.float64)
        shares = table / table.sum(axis=1, keepdims=True)
        starts = np.cumsum(shares, axis=1) - shares
        for level, name in enumerate(levels):
            axes.barh(
                np.arange(len(counts)),
                shares[:, level],
                0.72,
                left=starts[:, level],
                color=_SEVERITY_COLOURS[level],
                alpha=0.8,
                label=name,
            )
        titles = [f"{group}  n={sum(line):,}" for group, line in counts.items()]
        lay_out_bars(axes, titles)

    return draw(label, 0.9 + 0.24 * len(counts), paint)


def length_histogram(label: str, lengths: Lengths) -> Markup:
    """Share of each group's responses at each length; the last bin holds all that are longer."""

    def paint(axes: Axes) -> None:
        labelled = [name for name in lengths.groups if name != "all"]
        for name in labelled or ["all"]:
            group, colour = lengths.groups[name], _GROUP_COLOURS[name]
            shares = np.array(group.histogram) / group.n
            axes.stairs(shares, lengths.edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            axes.stairs(shares, lengths.edges, color=colour, linewidth=1.4, label=name)
            axes.axvline(group.percentiles[50], color=colour, linewidth=1.0, linestyle="--")
        axes.set_xlabel("words")
        axes.set_xlim(0, lengths.edges[-1])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        place_legend(axes)

    return draw(label, 2.9, paint)
