"""Write the figures of docs/alignment-gap.md from results of `rmtrain gap`.

    python scripts/alignment_gap_doc.py "PandaLM votes, the first 300 rows=results/…/gap.json" …
    python scripts/alignment_gap_doc.py

Results that are named are added to docs/alignment-gap.json, without their rows and without paths of this machine.
The document's part between its two marks is then made anew from that file. The first result is shown in full, as the
command prints it.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rmtrain.places import name_only, without_places
from rmtrain.reporting.gap import gap_tables
from rmtrain.reporting.table import Table, to_markdown
from rmtrain.reporting.text import points

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: made by scripts/alignment_gap_doc.py -->", "<!-- end of the figures -->"


def add(results: dict[str, Any], named: str) -> None:
    title, _, path = named.rpartition("=")
    text = Path(path).read_text(encoding="utf-8")
    for number, name in enumerate(json.loads(text)["reward_models"], start=1):
        text = text.replace(json.dumps(name), f'"reward model {number}"')
    result = without_places(json.loads(text), name_only)
    result["data"]["source"] = Path(result["data"]["source"]).name
    results[title] = {key: value for key, value in result.items() if key not in ("rows", "log_ratios")}


def with_ends(figures: Mapping[str, Any], key: str, sign: str = "") -> str:
    return f"{points(figures[key], 1, sign)} ({points(figures['low'], 1, sign)} to {points(figures['high'], 1, sign)})"


def summary(results: Mapping[str, Any]) -> Table:
    rows = []
    for title, result in results.items():
        cells: list[str] = []
        for of in (lambda figures: figures, lambda figures: figures["normalised"]):
            ideal = median(of(figures)["accuracy"] for figures in result["idealised"].values())
            gap = with_ends(of(result["gap"]["median"]), "difference", "+")
            cells += [with_ends(of(result["policy"]), "accuracy"), points(ideal, 1), gap]
        rows.append((title, str(result["n"]), *cells))
    columns = ("rows", "n", "R", "R*", "gap", "R~", "R~*", "gap~")
    notes = ["In per cent and points, with 95 % intervals clustered by prompt; R* and the gap at the median over beta."]
    return Table(columns, rows, notes=notes)


def figures_of(results: Mapping[str, Any]) -> str:
    parts = [to_markdown(summary(results))]
    for number, (title, result) in enumerate(results.items()):
        tables = gap_tables(result)[0 if number == 0 else 2 :]
        parts += [f"### {title}", *map(to_markdown, tables)] if tables else []
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", metavar="TITLE=gap.json")
    kept, page = DOCS / "alignment-gap.json", DOCS / "alignment-gap.md"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for named in parser.parse_args().results:
        add(results, named)
    lines = ",\n".join(f"{json.dumps(title)}: {json.dumps(result)}" for title, result in results.items())
    kept.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{figures_of(results)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
