"""Terminal tables: their figures are those of the results, they fit 80 columns, and data can't dress them up."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from reporting.run_cases import make_rows, make_run, write_benchmark, write_split
from rich.console import Console

from rmtrain.reporting.table import Interval, Table, key_values, spaced, to_html, to_markdown, to_terminal
from rmtrain.reporting.tables import benchmark_tables, split_tables


def show(tables: list[Table], width: int = 80, terminal: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None).print(
        to_terminal(*tables)
    )
    return stream.getvalue()


def results(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / "eval" / f"{split}.json").read_text()) for split in ("validation", "test")]


def test_split_table_has_the_results_figures(tmp_path: Path) -> None:
    found = results(make_run(tmp_path))
    lines = {line[:26].strip(): line[26:].split("  ") for line in show(split_tables(found)).splitlines()}
    cells = {label: [cell.strip() for cell in line if cell.strip()] for label, line in lines.items()}
    assert cells["accuracy"] == [f"{100 * result['accuracy']:.1f} %" for result in found]
    assert cells["95 % interval"] == [
        f"{100 * result['accuracy_low']:.1f} to {100 * result['accuracy_high']:.1f} %" for result in found
    ]
    assert cells["preferences (n)"] == ["60", "90"]
    assert cells["loss, nats"] == [f"{result['loss']:.4f}" for result in found]
    assert cells["ties"] == ["1", "1"]


def test_tables_fit_80_columns_without_boxes_or_colour(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    bench = json.loads((run / "rewardbench" / "rewardbench-1.json").read_text())
    for era in bench["scores"].values():
        era["with_prior_sets"] = 0.8123
    for table in (split_tables([*results(run), *results(run)]), benchmark_tables(bench)):
        text = show(table)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
        assert not any("\u2500" <= character <= "\u257f" for character in text)
        assert "…" not in text


def test_where_nothing_is_whole_there_is_a_sentence_and_no_empty_table(tmp_path: Path) -> None:
    bench = write_benchmark(make_run(tmp_path))
    whole = show(benchmark_tables(bench))
    bench["sections"] = dict.fromkeys(bench["sections"])
    for score in bench["scores"].values():
        score["mean_of_sections"] = None
    text = show(benchmark_tables(bench))
    assert text.startswith("RewardBench sections: no section has a score, because each lacks a subset.")
    assert "micro_accuracy" in whole
    assert "micro_accuracy" not in text
    subsets = {name: {"n": 4} for name in ("shp", "summarize", "anthropic_hhh", "anthropic_helpful", "mtbench_gpt4")}
    bench["prior_sets"] = {"score": 0.5, "low": 0.25, "high": 0.75, "subsets": subsets}
    line = next(line for line in show(benchmark_tables(bench)).splitlines() if line.startswith("prior sets"))
    assert line.split() == ["prior", "sets,", "mean", "of", "4", "50.00", "%", "25.00", "to", "75.00", "%", "16"]


def test_styles_and_the_terms_of_ties_are_shown() -> None:
    levels = {"hard": 0.1, "normal": 0.2, "easy": 0.3}
    result = {"benchmark": "rm-bench", "sections": {"Chat": {"score": 0.2, **levels}, "Math": None}}
    result["scores"] = {"current": {"mean_of_sections": None, **dict.fromkeys(levels)}}
    lines = [line.split() for line in show(benchmark_tables(result)).splitlines()]
    assert ["by", "style,", "in", "%", "hard", "normal", "easy"] in lines
    assert ["Chat", "10.00", "20.00", "30.00"] in lines
    assert ["Math", "n/a", "n/a", "n/a"] in lines
    ties = {"tied_accuracy": 0.5, "ref_accuracy": 0.25, "margin": None}
    text = show(benchmark_tables({"benchmark": "rewardbench-2", "sections": {"Ties": {"score": 0.4}}, "ties": ties}))
    assert ["50.00", "25.00", "n/a"] in [line.split() for line in text.splitlines()]


def test_eras_have_half_credit_and_length_beside_their_score(tmp_path: Path) -> None:
    bench = write_benchmark(make_run(tmp_path))
    assert "longer" not in show(benchmark_tables(bench))
    for score in bench["scores"].values():
        score |= {"length_baseline": 0.4711, "mean_half": 0.5822, "prior_sets": 0.6933, "with_prior_sets": 0.7044}
        score |= {"with_prior_low": 0.61, "with_prior_high": 0.79}
        score |= {"with_prior_half": 0.7155, "with_prior_length_baseline": 0.4266}
    text = show(benchmark_tables(bench))
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[-2:] for line in text.splitlines() if line.startswith("2024-04")] == [
        ["58.22", "47.11"],
        ["71.55", "42.66"],
    ]
    last = [line for line in text.splitlines() if line.startswith("current")][-1]
    assert last.split()[1:4] == ["69.33", "70.44", "61.00-79.00"]


def test_rewardbench_table_has_sections_and_eras(tmp_path: Path) -> None:
    bench = write_benchmark(make_run(tmp_path))
    text = show(benchmark_tables(bench))
    chat = bench["sections"]["Chat"]
    interval = f"{100 * chat['low']:.2f} to {100 * chat['high']:.2f} %"
    assert [f"{100 * chat['score']:.2f} %  {interval}  10".split()] == [
        line.split()[1:] for line in text.splitlines() if line.startswith("Chat ") and "Hard" not in line
    ]
    for era, score in bench["scores"].items():
        line = next(line for line in text.splitlines() if line.startswith(era))
        assert f" {100 * score['mean_of_sections']:.2f} " in line
    assert "Subsets of unexpected size: alpacaeval-easy 2 of 100" in text


def test_missing_subsets_are_named_and_their_sections_are_not_scored(tmp_path: Path) -> None:
    bench = write_benchmark(make_run(tmp_path), leave_out=("hep-cpp", "donotanswer"))
    text = show(benchmark_tables(bench))
    assert "Missing subsets: donotanswer, hep-cpp." in text
    assert next(line for line in text.splitlines() if line.startswith("Safety")).split() == [
        "Safety",
        "n/a",
        "n/a",
        "n/a",
    ]


def test_many_splits_are_split_over_tables(tmp_path: Path) -> None:
    one = results(make_run(tmp_path))[0]
    text = show(split_tables([{**one, "split": f"split{i}"} for i in range(7)]))
    assert all(f"split{i}" in text for i in range(7))
    assert max(map(len, text.splitlines())) <= 80


def test_figures_that_can_not_be_had_are_said(tmp_path: Path) -> None:
    result = {"split": "test", "n": 0, "groups": 2, "accuracy": None, "ece": float("nan"), "by_source": {}}
    text = show(split_tables([result]))
    assert "calibration error (ECE)     n/a" in " ".join(text.split("\n"))
    assert "nan" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_text_from_data_is_shown_as_it_is_and_steers_nothing(tmp_path: Path, terminal: bool) -> None:
    run = make_run(tmp_path)
    sources = ("[bold red]x[/] \x1b[31my\x1b[0m", ":smile: https://example.org\x07")
    result = write_split(run, "test", make_rows(30, sources=sources))
    text = show(split_tables([{**result, "split": "[link=x]test[/link]"}]), terminal=terminal)
    for wanted in ("[bold red]x[/] y", ":smile: https://example.org", "[link=x]test[/link]"):
        assert wanted in text
    assert "\x1b[31m" not in text
    assert "\x07" not in text


def test_key_values_leave_out_what_is_none() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(spaced([key_values({"a": 1, "b": None, "c": "x\x1b[2J"})]))
    text = stream.getvalue()
    assert [line.split() for line in text.splitlines()] == [["a", "1"], ["c", "x"]]


MODELS = Table(
    ("model", "mean of\N{NO-BREAK SPACE}4", "Rea\N{SOFT HYPHEN}soning"),
    [("<b>a|b*</b>\x1b[2J", "72.3 %", "n/a"), ("longer wins", "50.0 %", "1")],
    title="Two [red]models",
    bold=[0],
    dim=[1],
    intervals=[Interval(0.62, 0.723, 0.8), Interval(None, 0.5, 0.6)],
    notes=["One & all."],
)


def test_one_table_is_written_three_ways() -> None:
    lines = show([MODELS]).splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [
        "Two [red]models",
        "model",
        "<b>a|b*</b>",
        "longer wins",
        "One & all.",
    ]
    assert to_markdown(MODELS).splitlines() == [
        r"**Two \[red\]models**",
        "",
        "| model | mean of 4 | Reasoning |",
        "| --- | ---: | ---: |",
        r"| &lt;b&gt;a\|b\*&lt;/b&gt; | 72.3 % | n/a |",
        "| longer wins | 50.0 % | 1 |",
        "",
        "One &amp; all.  ",
    ]
    page = to_html(MODELS)
    assert page.startswith("<h3>Two [red]models</h3>")
    assert '<tr class="total"><th scope="row">&lt;b&gt;a|b*&lt;/b&gt;</th><td class="number">72.3 %</td>' in page
    assert page.count("<svg") == 1
    assert '<rect x="24.00" y="3" width="36.00"' in page
    assert page.endswith("<p>One &amp; all.</p>")


def test_headings_of_a_wide_table_are_stacked() -> None:
    columns = [*MODELS.columns, *(f"another column {index}" for index in range(5))]
    lines = show([Table(columns, [(*row, *"12345") for row in MODELS.rows])]).splitlines()
    assert [line[:42].split() for line in lines] == [
        ["another", "another"],
        ["mean", "Rea-", "column", "column"],
        ["model", "of", "4", "soning", "0", "1"],
        ["<b>a|b*</b>", "72.3", "%", "n/a", "1", "2"],
        ["longer", "wins", "50.0", "%", "1", "1", "2"],
    ]
