"""The figures of docs/alignment-gap.md are those that its script makes of the results beside it."""

import json

import alignment_gap_doc


def test_the_document_holds_the_figures_of_its_results() -> None:
    text = (alignment_gap_doc.DOCS / "alignment-gap.json").read_text(encoding="utf-8")
    page = (alignment_gap_doc.DOCS / "alignment-gap.md").read_text(encoding="utf-8")
    assert alignment_gap_doc.figures_of(json.loads(text)) in page
    assert '"/' not in text  # no path of the machine that measured
