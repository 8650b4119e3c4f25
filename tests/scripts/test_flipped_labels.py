"""The figures of rows whose labels were turned round on purpose, and the page that shows them."""

import json

import flipped_labels
import pytest

from rmtrain.metrics.intervals import wilson_interval


def test_the_page_is_made_from_its_results() -> None:
    text = (flipped_labels.DOCS / "flipped-labels.json").read_text(encoding="utf-8")
    page = (flipped_labels.DOCS / "data.md").read_text(encoding="utf-8")
    assert flipped_labels.write(json.loads(text), page) == page
    assert '"/' not in text  # no path of the machine that measured


def test_labels_are_turned_round_and_what_finds_them_is_counted_by_row() -> None:
    pair = {"id": "a", "chosen": "x", "rejected": "y"}
    assert flipped_labels.turned(pair) == {"id": "a", "chosen": "y", "rejected": "x"}
    assert flipped_labels.turned({"completions": ["x", "y"], "scores": [3.0, 1.0]})["scores"] == [1.0, 3.0]
    margins = [[-1.0, None], [2.0, 1.0], [-1.0, -2.0], [0.5, -3.0]]
    judged = [
        {"id": "a", "preferences": [[0, 1], [0, 2]], "margins": margins[:2]},
        {"id": "b", "preferences": [[0, 1], [2, 1]], "margins": margins[2:]},
    ]
    found = flipped_labels.verdicts(judged, {"a"})
    assert found["rejected"]["majority"] == [1, 1]
    assert (found["flipped"], found["preferences"], found["agreement"]) == ([1, 0], [2, 2], [1.0, 0.5])


def test_a_share_of_pairs_has_wilsons_interval() -> None:
    share, low, high = flipped_labels.share_of([1, 0, 0, 1], [1, 1, 1, 1])
    ends = wilson_interval(0.5, 4)
    assert (share, low, high) == (0.5, pytest.approx(ends.low, abs=0.01), pytest.approx(ends.high, abs=0.01))
