"""The figures of assess.html that report.html does not have."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from castor.reports.plots import Look
from castor.reports.svg import MARKERS, MUTED, POLICY_COLOURS, draw, place_legend
from castor.statistics.calibration import Bin

FAINT_ROWS = 20  # a bin with fewer rows says little and is drawn faintly


def model_looks(names: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker for every model, in order; grey is left to the papers."""
    colours, markers = POLICY_COLOURS[1:], MARKERS[1:]
    return {name: Look(name, colours[i % len(colours)], markers[i % len(markers)]) for i, name in enumerate(names)}


def reliability_plot(curves: Mapping[str, Sequence[Bin]], looks: Mapping[str, Look]) -> Markup:
    """Share of unsafe rows in each bin over the mean probability there, with intervals, beside the diagonal."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle="--")
        for name, bins in curves.items():
            points = [(each.confidence, each.observed, each.n) for each in bins if each.observed is not None]
            x = np.array([confidence for confidence, _, _ in points])
            y = np.array([observed.value for _, observed, _ in points])
            look = looks[name]
            axes.plot(x, y, color=look.colour, linewidth=1.1, alpha=0.5)
            for confidence, observed, n in points:
                ends = [[observed.value - observed.low], [observed.high - observed.value]]
                alpha = 0.3 if n < FAINT_ROWS else 0.9
                axes.errorbar(confidence, observed.value, ends, color=look.colour, elinewidth=0.9, alpha=alpha)
                axes.plot(confidence, observed.value, look.marker, color=look.colour, markersize=5, alpha=alpha)
            axes.plot([], [], look.marker, color=look.colour, markersize=5, label=look.title)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("probability of being unsafe, as the model says")
        axes.set_ylabel("unsafe, as labelled")
        place_legend(axes)

    return draw("Reliability", 4.4, paint)
