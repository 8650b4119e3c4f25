"""Drawings: every preference is in a bar on its side of 0, every point in a mean, the same bytes each time."""

import base64
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmtrain.metrics.calibration import reliability_bins
from rmtrain.reporting.figures import POINTS, Curve, Image, curves, gap_bars, gap_histogram, reliability_diagram, thin

GAPS = arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e6, 1e6, allow_subnormal=False))


@given(GAPS)
def test_every_gap_is_in_one_bar_on_its_side(gaps: np.ndarray) -> None:
    lefts, heights, width = gap_bars(gaps)
    assert heights.sum() == len(gaps)
    assert heights[lefts < -width / 2].sum() == (gaps < 0).sum()
    assert len(lefts) <= 43


def test_bars_are_those_of_a_plain_histogram() -> None:
    gaps = np.random.default_rng(0).normal(0.5, 2, 1000)
    lefts, heights, width = gap_bars(gaps)
    expected, _ = np.histogram(gaps, [*lefts, lefts[-1] + width])
    assert heights.tolist() == expected.tolist()


@given(st.integers(1, 1000))
def test_thinning_keeps_the_mean_and_the_range(length: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    steps, means, lows, highs = thin(Curve("training", range(length), values.tolist()))
    assert len(steps) == min(length, POINTS)
    assert lows.min() == values.min()
    assert highs.max() == values.max()
    assert (lows <= means).all()
    assert (means <= highs).all()
    if length % POINTS == 0:
        assert means.mean() == pytest.approx(values.mean(), abs=1e-12)


def svg(image: Image) -> ElementTree.Element:
    """The drawing of an image."""
    kind, _, content = image.source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(content))


@pytest.mark.parametrize("gaps", [[0.0], [1.0], [-1.0], [0.0, 0.0], [3.0, 3.0], [-1e-9, 1e9]])
def test_odd_gaps_are_drawn(gaps: list[float]) -> None:
    values = np.array(gaps)
    drawn = [gap_histogram(values), reliability_diagram(reliability_bins(values), design_effect=1.0)]
    assert [svg(image).tag.rpartition("}")[2] for image in drawn] == ["svg", "svg"]


def test_short_and_long_curves_are_drawn_the_same_each_time() -> None:
    panel = [Curve("training", range(300), [0.5] * 300), Curve("validation", [7], [0.6], second=True)]
    first = curves(panel, "loss, nats")
    assert curves(panel, "loss, nats") == first
    texts = [element.text for element in svg(first).iter("{http://www.w3.org/2000/svg}text")]
    assert {"training", "validation", "step", "loss, nats"} <= set(texts)
    assert first.description == "loss, nats over training steps"
