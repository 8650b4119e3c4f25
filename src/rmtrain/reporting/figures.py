"""Figures as images inside the page: the same data gives the same bytes, and no text comes from data.

They are drawn for a light page; a dark page inverts them by its style sheet.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmtrain.evaluation.gap_figures import Bar
from rmtrain.metrics.calibration import ReliabilityBin
from rmtrain.metrics.intervals import wilson_interval
from rmtrain.metrics.rankings import Floats
from rmtrain.reporting.text import is_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 100  # the most points that are drawn of a curve
_BARS = 40

# Okabe and Ito's palette, distinct for every kind of colour vision
_INK, _RULE, _FIRST, _SECOND = "black", "#c9d0d8", "#0072b2", "#d55e00"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rmtrain",
    "font.size": 9,
    "axes.edgecolor": _RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 6),
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
}


class Image(NamedTuple):
    """A drawing for an <img> element."""

    source: str  # a data URI
    description: str  # the alternative text of the image


class Figure(NamedTuple):
    """An image with its caption."""

    title: str
    caption: str
    image: Image


class Curve(NamedTuple):
    """A metric over steps; `second` marks the second of two curves in a panel."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    second: bool = False

    @classmethod
    def of(cls, label: str, lines: Sequence[Mapping[str, Any]], key: str, scale: int) -> "Curve":
        """The values of one key of log lines, times a scale; lines without a number are left out."""
        known = [(line["step"], scale * line[key]) for line in lines if is_figure(line.get(key))]
        return cls(label, [step for step, _ in known], [value for _, value in known])


class Spot(NamedTuple):
    """The accuracy of a setting, its interval, and the accuracy of each seed."""

    number: int  # the setting's number
    accuracy: float
    interval: tuple[float, float]
    seeds: Sequence[float]


def curves(panel: Sequence[Curve], unit: str) -> Image:
    """Training curves; a curve of more than 100 points is drawn as means of neighbouring points, with their range."""
    with _drawing("step", unit) as axes:
        for place, curve in enumerate(panel):
            colour = f"C{place}" if len(panel) > 2 else _SECOND if curve.second else _FIRST
            steps, means, lows, highs = thin(curve)
            if len(steps) < len(curve.steps):
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
            marker = "o" if curve.second or len(steps) == 1 else None
            axes.plot(steps, means, color=colour, marker=marker, label=curve.label)
        if len(panel) > 1:
            axes.legend()
        axes.locator_params(axis="x", nbins=6, integer=True)
        return _image(axes, f"{unit} over training steps")


def gap_bars(gaps: Floats) -> tuple[Floats, Floats, float]:
    """Left edges, heights and width of about 40 bars; no bar spans 0."""
    width = float(gaps.max(initial=0) - gaps.min(initial=0)) / _BARS or 1.0
    places = np.floor(gaps / width)
    places = np.where(gaps < 0, np.minimum(places, -1), places).astype(np.int64)
    first = int(places.min())
    heights = np.bincount(places - first)
    return np.asarray(width * (first + np.arange(len(heights)))), heights.astype(np.float64), width


def gap_histogram(gaps: Floats) -> Image:
    """Histogram of reward gaps [n], n > 0; gaps below 0 (ranked wrongly) have another colour."""
    lefts, heights, width = gap_bars(gaps)
    with _drawing("reward gap, better less worse completion", "preferences") as axes:
        colours = [_SECOND if left < -width / 2 else _FIRST for left in lefts]
        axes.bar(lefts, heights, width=0.92 * width, align="edge", color=colours)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="x", nbins=7)
        return _image(axes, "histogram of reward gaps")


def reliability_diagram(bins: Sequence[ReliabilityBin], design_effect: float) -> Image:
    """Accuracy against confidence sigmoid(|gap|), with 95 % intervals; the diagonal is perfect calibration.

    The design effect, the number of preferences over their effective number, widens the intervals.
    """
    confidence = np.array([part.confidence for part in bins])
    accuracy = np.array([part.accuracy for part in bins])
    intervals = [wilson_interval(part.accuracy, part.n / design_effect) for part in bins]
    below = np.maximum(0, accuracy - [ends.low for ends in intervals])
    above = np.maximum(0, [ends.high for ends in intervals] - accuracy)
    with _drawing("confidence, sigmoid of |reward gap|", "accuracy") as axes:
        axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect calibration")
        axes.errorbar(
            confidence,
            accuracy,
            yerr=np.stack([below, above]),
            color=_FIRST,
            fmt="o",
            elinewidth=1,
            label="bins",
        )
        right = min(1.01, max(0.55, 0.5 + 1.1 * (float(confidence.max()) - 0.5)))
        axes.set_xlim(0.5 - 0.02 * (right - 0.5), right)
        axes.set_ylim(min(0.48, float((accuracy - below).min()) - 0.02), 1.02)
        axes.legend(loc="lower right")
        return _image(axes, "reliability diagram: accuracy by confidence")


def gap_over_beta(ideal: Mapping[str, tuple[float, float]], policy: tuple[float, float]) -> Image:
    """Accuracy of the ideal policy by beta, and of the policy; with summed and length-normalised log-probabilities."""
    with _drawing("beta", "ranking accuracy, %") as axes:
        betas = sorted(ideal, key=float)
        for kind, (colour, label) in enumerate(((_FIRST, "summed"), (_SECOND, "length-normalised"))):
            values = [100 * ideal[beta][kind] for beta in betas]
            axes.plot([float(beta) for beta in betas], values, color=colour, marker="o", label=label)
            axes.axhline(100 * policy[kind], color=colour, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.legend()
        return _image(axes, "ranking accuracy of the ideal policy and of the policy over beta")


def log_ratio_histogram(bars: Sequence[Bar]) -> Image:
    """Histogram of log-ratios, in bars of one width; preferences that the policy ranks wrongly are stacked on top in
    another colour."""
    with _drawing("log-ratio, better less worse completion, nats", "preferences") as axes:
        lefts, right, wrong = [bar.low for bar in bars], [bar.right for bar in bars], [bar.wrong for bar in bars]
        width = 0.92 * (bars[0].high - bars[0].low)
        axes.bar(lefts, right, width=width, align="edge", color=_FIRST, label="policy right")
        axes.bar(lefts, wrong, width=width, align="edge", color=_SECOND, bottom=right, label="policy wrong")
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.grid(visible=False, axis="x")
        axes.legend()
        return _image(axes, "histogram of log-ratios")


def best_of_n_curves(kl: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Image:
    """Mean score of the completion chosen among N = 1 ..., by label, over the KL divergence of best-of-N in nats."""
    with _drawing("KL = ln N - (N - 1) / N, nats", "mean score") as axes:
        for number, (label, values) in enumerate(curves.items()):
            colour = (_INK, _FIRST, _FIRST, _SECOND)[min(number, 3)]
            style = ("dotted", "solid", "dashed", "solid", "dashed", "dashdot")[min(number, 5)]
            axes.plot(kl, values, color=colour, linestyle=style, marker=".", markersize=4, label=label)
        axes.legend()
        return _image(axes, "mean score of the best of N over its KL divergence")


def setting_curves(panel: Sequence[tuple[int, Curve]], unit: str) -> Image:
    """Curves of runs, each with the number of its setting, thinned as in `curves`; one colour per setting."""
    with _drawing("step", unit) as axes:
        named = set[int]()
        for number, curve in panel:
            label = None if number in named else str(number)
            named.add(number)
            steps, means, _, _ = thin(curve)
            axes.plot(steps, means, color=_colour(number), linewidth=1, alpha=0.8, label=label)
        if len(named) <= 10:
            axes.legend(title="setting", ncols=2)
        axes.locator_params(axis="x", nbins=6, integer=True)
        return _image(axes, f"{unit} over training steps, by setting")


def setting_spots(spots: Sequence[Spot]) -> Image:
    """Accuracy of each setting with its interval, in the order of the grid; crosses mark its seeds."""
    with _drawing("setting", "validation accuracy, %") as axes:
        for place, spot in enumerate(spots):
            low, high = (100 * end for end in spot.interval)
            axes.plot([place, place], [low, high], color=_colour(spot.number), linewidth=1)
            axes.plot([place], [100 * spot.accuracy], color=_colour(spot.number), marker="o", markersize=5)
            seeds = [100 * value for value in spot.seeds]
            axes.plot([place] * len(seeds), seeds, color=_INK, marker="x", markersize=4, linestyle="none")
        axes.set_xticks(range(len(spots)), [str(spot.number) for spot in spots])
        axes.grid(visible=False, axis="x")
        return _image(axes, "validation accuracy of each setting")


def _colour(number: int) -> str:
    """A colour of Okabe and Ito's palette for a number from 1."""
    return ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")[(number - 1) % 7]


def thin(curve: Curve) -> tuple[Floats, Floats, Floats, Floats]:
    """Steps, means, minima and maxima of at most POINTS runs of neighbouring points."""
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    if len(steps) <= POINTS:
        return steps, values, values, values
    runs = np.array_split(values, POINTS)
    means = [np.array([run.mean() for run in parts]) for parts in (np.array_split(steps, POINTS), runs)]
    return means[0], means[1], np.array([run.min() for run in runs]), np.array([run.max() for run in runs])


@contextmanager
def _drawing(horizontal: str, vertical: str) -> "Iterator[Axes]":
    """Axes with labels, in our settings over matplotlib's defaults; a user's matplotlibrc is ignored."""
    import matplotlib
    from matplotlib import style
    from matplotlib.figure import Figure  # not pyplot, which keeps figures in memory and chooses a display

    matplotlib.use("Agg", force=False)
    with style.context(["default", _STYLE]):
        axes = Figure(figsize=(4.6, 2.7)).subplots()
        axes.set_xlabel(horizontal)
        axes.set_ylabel(vertical)
        yield axes


def _image(axes: Any, description: str) -> Image:
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Image(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}", description)
