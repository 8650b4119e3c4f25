"""The one-page report: its figures are those of the files, it holds nothing foreign, and nothing missing breaks it."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from conftest import write_lines
from reporting.run_cases import make_manifest, make_recipe, make_rows, make_run, write_benchmark, write_gap, write_split

from rmtrain.errors import CheckpointError
from rmtrain.reporting import report
from rmtrain.reporting.card import write_model_card
from rmtrain.reporting.figures import Image
from rmtrain.reporting.report import write_report

CANARY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> \x1b[31mred\x07\u202e \ud800"
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "rect", "use"}


class Page(HTMLParser):
    """Tables as lists of rows of cell texts, all attributes, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip()

    def table(self, heading: str) -> dict[str, list[str]]:
        """The table that has the heading, by the first cell of its rows."""
        found = next(table for table in self.tables if heading in table[0])
        return {row[0]: row[1:] for row in found}


def read(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a finished run."""
    return read(make_run(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawings empty, where a test is not about them: they take nearly all of the time."""
    for name in ("curves", "gap_histogram", "reliability_diagram"):
        monkeypatch.setattr(report, name, lambda *arguments: Image("data:image/svg+xml;base64,", "empty"))


@pytest.mark.usefixtures("undrawn")
def test_figures_of_the_splits_are_those_of_the_results(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = Page(read(run)).table("validation")
    for column, split in enumerate(("validation", "test")):
        result = json.loads((run / "eval" / f"{split}.json").read_text())
        expected = {
            "accuracy": f"{100 * result['accuracy']:.1f} %",
            "95 % interval": f"{100 * result['accuracy_low']:.1f} to {100 * result['accuracy_high']:.1f} %",
            "preferences (n)": str(result["n"]),
            "groups": str(result["groups"]),
            "accuracy, ties wrong": f"{100 * result['accuracy_strict']:.1f} %",
            "ties": str(result["ties"]),
            "loss, nats": f"{result['loss']:.4f}",
            "accuracy of 'longer wins'": f"{100 * result['length_baseline']:.1f} %",
            "reward-length correlation": f"{result['reward_length_correlation']:.3f}",
            "calibration error (ECE)": f"{result['ece']:.3f}",
            "truncated groups": "1",
        }
        assert {label: table[label][column] for label in expected} == expected


@pytest.mark.usefixtures("undrawn")
def test_sources_and_benchmark_carry_n_and_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page = Page(read(run))
    result = json.loads((run / "eval" / "test.json").read_text())
    by_source = [
        {row[0]: row[1:4] for row in table[1:]} for table in page.tables if table[0][0].endswith(", by source")
    ]
    assert by_source[1] == {
        name: [
            f"{100 * part['accuracy']:.1f} %",
            f"{100 * part['low']:.1f} to {100 * part['high']:.1f} %",
            str(part["n"]),
        ]
        for name, part in result["by_source"].items()
    }
    bench = json.loads((run / "rewardbench" / "rewardbench-1.json").read_text())
    sections = page.table("RewardBench sections")
    assert sections["Chat"][:3] == [
        f"{100 * bench['sections']['Chat']['score']:.2f} %",
        f"{100 * bench['sections']['Chat']['low']:.2f} to {100 * bench['sections']['Chat']['high']:.2f} %",
        "10",
    ]
    eras = page.table("era, in %")
    assert {era: row[4] for era, row in eras.items() if era in bench["scores"]} == {
        era: f"{100 * score['mean_of_sections']:.2f}" for era, score in bench["scores"].items()
    }


def test_books_of_the_data_balance(finished: str) -> None:
    table = next(table for table in Page(finished).tables if table[0] == ["", "rows", "preferences"])
    numbers = {row[0]: int(row[1]) for row in table[1:]}
    assert numbers == {"total": 130, "dropped: tie": 7, "dropped: duplicate": 3, "kept": 120}


def test_page_holds_nothing_foreign(finished: str) -> None:
    text = finished
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    page = Page(text)
    assert page.open == []
    assert "script" not in text
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("srcdoc", "action")
        if name == "src":
            assert str(value).startswith("data:image/svg+xml;base64,")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value.startswith("#")


def test_drawings_are_well_formed_images_within_the_page(finished: str) -> None:
    sources = [value for tag, name, value in Page(finished).attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 6 + 2 * 2
    for source in sources:
        assert source is not None
        ElementTree.fromstring(base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")))
    assert finished.count(' alt="') == len(sources)


@pytest.mark.usefixtures("undrawn")
def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    books = {"total": 3, "kept": 1, "dropped": {CANARY: 2}}
    manifest = make_manifest(
        state="failed",
        error=CANARY,
        recipe=CANARY,
        command=["rmtrain", CANARY],
        git_commit=CANARY,
        versions={CANARY: CANARY},
        model={"name": CANARY, "commit": CANARY},
        data={CANARY: {"source": CANARY, "revision": CANARY, "rows": books}},
    )
    recipe = make_recipe(data__source=CANARY.replace("\ud800", ""), lora__targets=["<script>"])
    run = make_run(tmp_path, recipe=recipe, manifest=manifest)
    write_split(run, "test", make_rows(40, sources=("<script>one</script>", "\x1b]0;title\x07two")))
    bench = write_benchmark(run)
    bench["unknown_subsets"] = [CANARY]
    bench["sections"][CANARY] = bench["sections"]["Chat"]
    (run / "rewardbench" / "rewardbench-1.json").write_text(json.dumps(bench))
    (run / "rewardbench" / "<b>.json").write_text(json.dumps({"benchmark": CANARY}))
    write_gap(run, policy=CANARY, source=CANARY)
    text = read(run)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\ud800"}
    page = Page(text)
    assert page.open == []
    assert page.text.count("<script>alert(1)</script>") >= 12


@pytest.mark.usefixtures("undrawn")
def test_the_gap_that_the_model_was_judged_by_has_a_section(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = write_gap(run)
    page = Page(read(run))
    assert "Alignment gap of some-lab/policy" in page.text
    accuracies = page.table("ranking accuracy")
    assert accuracies["policy"][0] == f"{100 * result['policy']['accuracy']:.1f} %"
    assert accuracies[run.name][0] == f"{100 * result['reward_models'][str(run)]['accuracy']:.1f} %"
    (run / "gap" / "policy-on-rows.json").write_text(json.dumps(result | {"n": "many"}))
    page = Page(read(run))
    assert "gap/policy-on-rows.json: n: input should be a valid integer" in page.text
    assert "Alignment gap of" not in page.text


def test_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = write_report(run).read_bytes()
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "font.size": 20, "axes.facecolor": "red", "svg.hashsalt": None}
    ):
        assert write_report(run).read_bytes() == first


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("metrics.jsonl", "so there are no training curves"),
        ("recipe.yaml", "There is no recipe.yaml."),
        ("final", "There is no final model."),
        ("eval", "No split has been scored yet"),
        ("eval/test.json", "How to read the figures"),
        ("eval/test.rows.jsonl", "There is no eval/test.rows.jsonl"),
        ("rewardbench", "How to read the figures"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, gone: str, sentence: str) -> None:
    run = make_run(tmp_path)
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(read(run))
    assert page.open == []
    assert sentence in page.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("damaged", "sentence"),
    [
        ("metrics.jsonl", "1 of 1 lines of metrics.jsonl can't be read"),
        ("recipe.yaml", "recipe.yaml can't be read"),
        ("final/rmtrain.json", "final/rmtrain.json can't be read"),
        ("eval/test.json", "eval/test.json can't be read"),
        ("eval/test.rows.jsonl", "eval/test.rows.jsonl can't be read"),
        ("rewardbench/rewardbench-1.json", "rewardbench/rewardbench-1.json can't be read"),
        ("gap/policy-on-rows.json", "gap/policy-on-rows.json can't be read"),
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, damaged: str, sentence: str) -> None:
    run = make_run(tmp_path)
    write_gap(run)
    (run / damaged).write_text('{"a": [1, ')
    assert sentence in Page(read(run)).text


@pytest.mark.usefixtures("undrawn")
def test_a_log_that_can_not_be_opened_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert "metrics.jsonl can’t be read" in Page(read(run)).text.replace("'", "’")


@pytest.mark.usefixtures("undrawn")
def test_rows_of_another_result_are_not_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = run / "eval" / "test.rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    text = Page(read(run)).text
    assert "differ in n" in text
    assert "test: reward gaps" not in text


@pytest.mark.parametrize(
    "content", ['{"state": "finished"}', '{"state": "running", "data": 3, "totals": [], "versions": "x"}']
)
def test_a_bare_manifest_is_enough(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert "There is no final model." in Page(read(tmp_path)).text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("file", ["manifest.json", "eval/test.json", "rewardbench/rewardbench-1.json"])
@pytest.mark.parametrize("wrong", [None, "text", [1], {"a": 1}, float("nan"), True], ids=repr)
def test_values_of_a_wrong_kind_are_no_error(tmp_path: Path, file: str, wrong: object) -> None:
    run = make_run(tmp_path)
    values = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps({key: value if key == "state" else wrong for key, value in values.items()}))
    assert Page(read(run)).open == []


@pytest.mark.usefixtures("undrawn")
def test_results_without_figures_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    nothing = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "loss", "ece"))
    (run / "eval" / "test.json").write_text(json.dumps({**nothing, "n": 0, "groups": 3, "by_source": {}}))
    (run / "eval" / "test.rows.jsonl").write_text("")
    assert Page(read(run)).table("validation")["accuracy"][1] == "n/a"


@pytest.mark.usefixtures("undrawn")
def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest=make_manifest(state="failed", error="the disk is full"))
    assert "This run is failed: the disk is full" in Page(read(run)).text


@pytest.mark.usefixtures("undrawn")
def test_missing_subsets_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_benchmark(run, leave_out=("hep-cpp",))
    page = Page(read(run))
    assert "Missing subsets: hep-cpp." in page.text
    assert page.table("RewardBench sections")["Reasoning"][:2] == ["n/a", "n/a"]
    assert "Subsets of unexpected size: alpacaeval-easy 2 of 100" in page.text


def test_only_a_run_folder_has_a_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)


def test_the_entries_of_a_mixture_have_tables_and_a_curve(tmp_path: Path) -> None:
    books = {"total": 60, "kept": 50, "dropped": {"duplicate of another entry": 10}}
    figures = {"share_of_groups": 0.25, "share_of_tokens": 0.5, "length_baseline": 0.6, "completions_per_group": 2.0}
    entry = {"rows": books, "groups": 50, **figures}
    manifest = make_manifest()
    manifest["data"]["train"]["entries"] = {"chat": {**entry, "tags": ["hard"]}, "code": {**entry, "rows": CANARY}}
    mixture = {"train": [{"source": "org/chat"}, {"source": "/home/me/code.jsonl"}]}
    run = make_run(tmp_path, recipe=make_recipe(data__source=mixture), manifest=manifest)
    own = {"eval_accuracy/chat": 0.8, "eval_accuracy/code": 0.6, "eval_accuracy/<script>$x$": 0.1}
    all_of_them = {"eval_accuracy": 0.7, "eval_loss": 0.5, "eval_mean_accuracy": 0.7}
    lines = [{"step": step, **all_of_them, **own} for step in (6, 12)]
    write_lines(run / "metrics.jsonl", lines)
    text = write_report(run).read_text()
    page = Page(text)
    assert page.table("train, by entry")["chat"] == ["hard", "60", "50", "50", "25.0 %", "50.0 %", "60.0 %", "2.0"]
    assert page.table("train, rows dropped")["chat"] == ["10"]
    assert "Accuracy by entry" in page.text
    assert "trained on org/chat, " in page.text
    assert "<script>" not in text
    card = write_model_card(run).read_text()
    assert "train, by entry" in card
    assert "org/chat" in card.partition("\n---\n")[0]
    assert "/home/me" not in card
