"""The figures of docs/alignment-gap.md are those that its script makes of the results beside it."""

import importlib
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_document_holds_the_figures_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("alignment_gap_doc")
    text = (script.DOCS / "alignment-gap.json").read_text(encoding="utf-8")
    page = (script.DOCS / "alignment-gap.md").read_text(encoding="utf-8")
    assert script.figures_of(json.loads(text)) in page
    assert '"/' not in text  # no path of the machine that measured
    sys.modules.pop("alignment_gap_doc")
