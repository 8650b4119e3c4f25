"""Figures as inline SVG: the same bytes for the same data, coloured by the page, so that light and dark both work.

matplotlib draws with stand-in colours, which then become the page's CSS variables. Its text stays text: it can be
searched and read aloud. No text from data goes into a figure.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmtrain.metrics.calibration import ReliabilityBin
from rmtrain.metrics.intervals import wilson_interval
from rmtrain.metrics.rankings import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 100  # most points of a curve; longer ones are drawn as means of neighbouring steps
_BARS = 40

# Okabe and Ito's palette, told apart with any colour vision; the names are the page's CSS variables
_INK, _RULE, _FIRST, _SECOND = "#010203", "#040506", "#0072b2", "#d55e00"
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rmtrain",
    "font.size": 9,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 6),
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    "axes.unicode_minus": True,
}


class Curve(NamedTuple):
    """A figure over steps; `second` marks the other of two curves in a panel."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    second: bool = False


def curves(name: str, panel: Sequence[Curve], unit: str) -> str:
    """One panel of training curves.

    Args:
        name: unique on the page; prefixes the ids within the SVG.
        panel: one or two curves; a curve of more than 100 points is drawn as means, with the range of what they hold.
        unit: label of the vertical axis.
    """
    with _style():
        figure, axes = _new_figure()
        for curve in panel:
            colour = _SECOND if curve.second else _FIRST
            steps, means, lows, highs = thin(curve)
            if len(steps) < len(curve.steps):
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
            marker = "o" if curve.second or len(steps) == 1 else None
            axes.plot(steps, means, color=colour, marker=marker, markersize=3.5, label=curve.label)
        if len(panel) > 1:
            axes.legend(loc="best", fontsize=8)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.locator_params(axis="x", nbins=6, integer=True)
        return _svg(figure, name, f"{unit} over training steps")


def gap_bars(gaps: Floats) -> tuple[Floats, Floats, float]:
    """Left edges, heights and width of about 40 bars, none of which holds gaps on both sides of 0."""
    width = float(gaps.max(initial=0) - gaps.min(initial=0)) / _BARS or 1.0
    places = np.floor(gaps / width)
    places = np.where(gaps < 0, np.minimum(places, -1), places).astype(np.int64)
    first = int(places.min())
    heights = np.bincount(places - first)
    return np.asarray(width * (first + np.arange(len(heights)))), heights.astype(np.float64), width


def gap_histogram(name: str, gaps: Floats) -> str:
    """How many preferences have which reward gap, those ranked wrongly (below 0) in another colour.

    Args:
        name: unique on the page.
        gaps: [n], n > 0.
    """
    lefts, heights, width = gap_bars(gaps)
    with _style():
        figure, axes = _new_figure()
        colours = [_SECOND if left < -width / 2 else _FIRST for left in lefts]
        axes.bar(lefts, heights, width=0.92 * width, align="edge", color=colours)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel("reward gap, better less worse completion")
        axes.set_ylabel("preferences")
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="x", nbins=7)
        return _svg(figure, name, "histogram of reward gaps")


def reliability_diagram(name: str, bins: Sequence[ReliabilityBin], design_effect: float) -> str:
    """Accuracy against confidence sigmoid(|gap|), with 95 % intervals; the diagonal is perfect calibration.

    Args:
        name: unique on the page.
        bins: of equal mass.
        design_effect: preferences over their effective number, by which the intervals are widened.
    """
    confidence = np.array([part.confidence for part in bins])
    accuracy = np.array([part.accuracy for part in bins])
    intervals = [wilson_interval(part.accuracy, part.n / design_effect) for part in bins]
    below = np.maximum(0, accuracy - [found.low for found in intervals])
    above = np.maximum(0, [found.high for found in intervals] - accuracy)
    with _style():
        figure, axes = _new_figure()
        axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect calibration")
        axes.errorbar(
            confidence,
            accuracy,
            yerr=np.stack([below, above]),
            color=_FIRST,
            fmt="o",
            markersize=3.5,
            elinewidth=1,
            label="bins",
        )
        right = min(1.01, max(0.55, 0.5 + 1.1 * (float(confidence.max()) - 0.5)))
        axes.set_xlim(0.5 - 0.02 * (right - 0.5), right)
        axes.set_ylim(min(0.48, float((accuracy - below).min()) - 0.02), 1.02)
        axes.set_xlabel("confidence, sigmoid of |reward gap|")
        axes.set_ylabel("accuracy")
        axes.legend(loc="lower right", fontsize=8)
        return _svg(figure, name, "reliability diagram: accuracy by confidence")


def thin(curve: Curve) -> tuple[Floats, Floats, Floats, Floats]:
    """Steps, means, least and greatest values of at most POINTS runs of neighbouring points."""
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    if len(steps) <= POINTS:
        return steps, values, values, values
    runs = np.array_split(values, POINTS)
    means = [np.array([run.mean() for run in parts]) for parts in (np.array_split(steps, POINTS), runs)]
    return means[0], means[1], np.array([run.min() for run in runs]), np.array([run.max() for run in runs])


def _style() -> Any:
    """matplotlib's own defaults with ours, whatever the user's matplotlibrc says."""
    import matplotlib
    from matplotlib import style

    matplotlib.use("Agg", force=False)
    return style.context(["default", _STYLE])


def _new_figure() -> "tuple[Any, Axes]":
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and picks a screen

    figure = Figure(figsize=(4.6, 2.7))
    return figure, figure.subplots()


def _svg(figure: Any, name: str, description: str) -> str:
    """The figure as an <svg> element for a page: no prologue, metadata, style sheet or fixed size; unique ids."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg role="img" aria-label="{description}" viewBox="\1">', text
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", "\n", text)
