"""The leaderboard: published figures against the worked example and each other, own results in place, every format."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

import rmtrain.evaluation.leaderboard as module
from rmtrain.cli.leaderboard import leaderboard as command
from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK, COUNTS, PRIOR_COUNTS
from rmtrain.errors import DataError, InputError
from rmtrain.evaluation.benchmarks import benchmark_result
from rmtrain.evaluation.leaderboard import SORTS, Entry, Figures, own_entries
from rmtrain.evaluation.results import ScoredRow
from rmtrain.files import write_json

KNOWN = yaml.safe_load(Path(module.__file__).with_name("published.yaml").read_text(encoding="utf-8"))
RAY = "Ray2333 Mistral-7B"
ERAS = ("current", "2024-04", "2024-03", "subset_mean")


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no results/


def leaderboard(era: str, sort: str, own: list[Entry]) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(json.dumps(module.leaderboard(era, sort, own).to_json()))
    return board


def result_of(
    path: Path,
    share: float,
    ckpt: str = "runs/mine/final",
    rows: dict[str, int] = COUNTS,
    prior: dict[str, int] | None = None,
    lengths: tuple[int, int] = (1, 1),
) -> Path:
    """A result of scored rows, of which the given share of each subset is right."""
    scored, scored_prior = (
        [
            ScoredRow(f"{subset}/{i}", subset, (1.0, 0.0) if i < share * n else (0.0, 1.0), ((0, 1),), False, lengths)
            for subset, n in sizes.items()
            for i in range(n)
        ]
        for sizes in (rows, prior or {})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    result = benchmark_result(BENCHMARK, scored, scored_prior, ckpt).to_json()
    write_json(path, {**result, "rows": "r.rows.jsonl"})
    return path


def by_model(board: dict[str, Any]) -> dict[str, Any]:
    return {row["model"]: row for row in board["rows"]}


def test_the_worked_example_is_computed_from_subsets() -> None:
    row = by_model(leaderboard("current", "mean", []))[RAY]
    scored = row["scored"]
    chat = (98 + 94 + 91 + 28 + 39) / 358
    hard = (29 + 90 + 44 + 27 + 27 + 14) / 456
    safety = (82 + 99 + 150 + 216 + 84) / 740
    reasoning = (249 / 447 + (150 + 155 + 151 + 152 + 148 + 150) / (6 * 164)) / 2
    prior = statistics.mean([0.7026808785529716, 0.8959276018099548, 0.6433084434233199, 0.7317777777777777])
    assert list(scored["sections"].values()) == pytest.approx([chat, hard, safety, reasoning], abs=1e-9)
    assert scored["prior_sets"] == pytest.approx(prior)
    assert scored["mean_of_sections"] == pytest.approx((chat + hard + safety + reasoning) / 4)
    assert scored["with_prior_sets"] == pytest.approx((2 * (chat + hard + safety + reasoning) + prior) / 9)
    assert round(100 * scored["mean_of_sections"], 2) == 76.90
    assert round(100 * scored["with_prior_sets"], 2) == 76.61
    assert scored["interval"] == "binomial"
    # the weighted mean of independent rows, as if all had the mean's chance: never narrower than with the subsets' own
    weights = {name: n / total / 4 for total, part in sections().items() for name, n in part.items()}
    check_interval([scored[key] for key in ("low", "mean_of_sections", "high")], weights)
    weights = {name: weight * 8 / 9 for name, weight in weights.items()} | dict.fromkeys(
        KNOWN["models"][1]["prior_sets"], 1 / 36
    )
    check_interval([scored[key] for key in ("with_prior_low", "with_prior_sets", "with_prior_high")], weights)


def check_interval(found: list[float], weights: dict[str, float]) -> None:
    low, mean, high = found
    own = {**KNOWN["models"][1]["subsets"], **KNOWN["models"][1]["prior_sets"]}
    sizes = {**COUNTS, **PRIOR_COUNTS}
    assert mean == pytest.approx(sum(weight * own[name] for name, weight in weights.items()))
    pooled = mean * (1 - mean) * sum(weight**2 / sizes[name] for name, weight in weights.items())
    apart = sum(weight**2 * own[name] * (1 - own[name]) / sizes[name] for name, weight in weights.items())
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(pooled), rel=0.01)
    assert apart < pooled


def sections() -> dict[int, dict[str, int]]:
    """Sum of a section's weights → the weights, as the leaderboard prints them."""
    names = list(COUNTS)
    parts = [names[:5], names[5:11], names[11:16], names[16:]]
    weights = [{name: 984 if name == "math-prm" else COUNTS[name] for name in part} for part in parts]
    assert [sum(part.values()) for part in weights] == [358, 456, 740, 1968]
    return {sum(part.values()): part for part in weights}


@pytest.mark.parametrize("model", KNOWN["models"], ids=lambda model: model["name"])
def test_stated_figures_agree_with_each_other(model: dict[str, Any]) -> None:
    published = model["published"]
    five = [*published["sections"], published["prior_sets"]]
    if model["name"] != RAY:
        assert statistics.mean(five) == pytest.approx(published["average"], abs=0.06)
    for era, figures in model.get("eras", {}).items():
        four, prior = figures["sections"], figures["prior_sets"]
        with_prior = statistics.mean([*four, prior]) if era == "2024-03" else (2 * sum(four) + prior) / 9
        assert figures["with_prior_sets"] == pytest.approx(with_prior, abs=0.08)  # one decimal in all of them
        assert figures.get("mean_of_sections", statistics.mean(four)) == pytest.approx(statistics.mean(four), abs=0.06)
        assert ("table_prior" in model.get("notes", [])) == (prior == published["prior_sets"] and era != "2024-04") or (
            model["name"] == "Starling-RM-34B"
        )
    assert {published["source"], *(part["source"] for part in model.get("eras", {}).values())} <= set(KNOWN["sources"])
    assert set(model.get("notes", [])) <= set(KNOWN["notes"])


def test_no_formula_gives_the_average_that_the_note_says_fits_none() -> None:
    published = KNOWN["models"][1]["published"]
    four, prior = published["sections"], published["prior_sets"]
    five = statistics.mean([*four, prior]), (2 * sum(four) + prior) / 9, statistics.mean(four)
    assert [round(value, 2) for value in five] == [79.51, 80.14, 80.91]
    for value in (*five, published["average"]):
        assert f"{value:.2f}" in KNOWN["notes"]["unfitted"]
    row = by_model(leaderboard("subset_mean", "mean", []))[RAY]
    scored = [100 * score for score in row["scored"]["sections"].values()]
    assert [round(score, 2) for score in scored] == [98.05, 53.07, 85.31, 86.88]
    assert scored == pytest.approx(four, abs=0.7)


def test_the_first_era_gives_the_table_back() -> None:
    for name, row in by_model(leaderboard("2024-03", "with-prior", [])).items():
        if name != RAY:
            assert row["scored"]["with_prior_sets"] == pytest.approx(row["published"]["with_prior_sets"], abs=0.0011)
            assert list(row["scored"]["sections"].values()) == pytest.approx(
                list(row["published"]["sections"].values()), abs=0.004
            )


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("sort", SORTS)
def test_rows_come_best_first_and_those_without_the_figure_last(era: str, sort: str) -> None:
    board = leaderboard(era, sort, [])
    keys = {"mean": "mean_of_sections", "with-prior": "with_prior_sets"}
    sectioned = {"chat": "Chat", "chat-hard": "Chat Hard", "safety": "Safety", "reasoning": "Reasoning"}

    def figure(row: dict[str, Any]) -> Any:
        if sort == "published":
            return row["published"]["with_prior_sets"]
        return row["scored"][keys[sort]] if sort in keys else row["scored"]["sections"][sectioned[sort]]

    assert len(board["rows"]) == 8
    known = [row for row in board["rows"] if figure(row) is not None]
    assert [row["rank"] for row in board["rows"]] == [*range(1, len(known) + 1)] + [None] * (8 - len(known))
    assert [figure(row) for row in board["rows"][: len(known)]] == sorted(map(figure, known), reverse=True)
    if sort != "published":
        assert len(known) == {"current": 8, "2024-04": 2, "2024-03": 8, "subset_mean": 1}[era]


def test_figures_are_fractions_or_null_in_every_era() -> None:
    for era in ERAS:
        for row in leaderboard(era, "mean", [])["rows"]:
            for side in (row["published"], row["scored"]):
                values = [*side["sections"].values(), *(side[key] for key in side if key not in ("sections", "source"))]
                assert all(value in (None, "binomial", "sections") or 0 < value < 1 for value in values)
            assert (row["scored"]["source"] is None) == (row["scored"]["mean_of_sections"] is None)


def test_own_runs_stand_in_their_place(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    mine = result_of(runs / "mine" / "rewardbench" / "rewardbench-1.json", 0.75)
    given = result_of(tmp_path / "other.json", 0.9, "org/other")
    own, faults = own_entries([runs], [given, mine, mine.parent.parent], "current")
    assert [row.model for row in own] == ["mine", "org/other"]
    assert faults == []
    board = leaderboard("current", "mean", own)
    assert [row["model"] for row in board["rows"]][:4] == ["org/other", "Starling-RM-34B", RAY, "mine"]
    row = by_model(board)["mine"]
    truth = json.loads(mine.read_text())["scores"]["current"]
    assert [row["scored"][key] for key in ("mean_of_sections", "low", "high")] == [
        truth[key] for key in ("mean_of_sections", "low", "high")
    ]
    assert row["scored"]["low"] < row["scored"]["mean_of_sections"] < row["scored"]["high"]
    assert (row["scored"]["interval"], row["published"], row["rank"]) == ("clustered", None, 4)
    assert by_model(leaderboard("current", "with-prior", own))["mine"]["rank"] is None


def test_partial_results_are_shown_and_not_ranked(tmp_path: Path) -> None:
    lacking = {name: n for name, n in COUNTS.items() if name != "hep-go"}
    short = {**COUNTS, "math-prm": 200}
    paths = [
        result_of(tmp_path / "a.json", 0.95, "lacking", lacking),
        result_of(tmp_path / "b.json", 0.95, "short", short),
    ]
    own, _ = own_entries([tmp_path / "none"], paths, "current")
    board = leaderboard("current", "mean", own)
    rows = by_model(board)
    assert [row["model"] for row in board["rows"]][-2:] == ["lacking", "short"]
    assert [row["rank"] for row in board["rows"]][-3:] == [8, None, None]
    assert rows["lacking"]["missing_subsets"] == ["hep-go"]
    assert rows["lacking"]["scored"]["sections"]["Reasoning"] is None
    assert rows["lacking"]["scored"]["sections"]["Chat"] > 0.94
    assert rows["short"]["incomplete_subsets"] == {"math-prm": {"n": 200, "expected": 447}}
    printed = invoke("--runs", str(tmp_path / "none"), *map(str, paths)).stdout
    assert "lacking (partial)" in printed
    flat = " ".join(printed.split())
    assert "lacking is partial and has no rank: it lacks hep-go." in flat
    assert "short is partial and has no rank: incomplete rows: math-prm 200 of 447." in flat


def test_a_prior_set_of_some_rows_takes_no_rank_but_that_of_the_score_with_prior_sets(tmp_path: Path) -> None:
    sizes = {**dict.fromkeys(PRIOR_COUNTS, 40), "anthropic_hhh": 221}
    path = result_of(tmp_path / "p.json", 0.8, "mine", prior=sizes)
    own, _ = own_entries([], [path], "current")
    assert by_model(leaderboard("current", "mean", own))["mine"]["rank"] == 2
    row = by_model(leaderboard("current", "with-prior", own))["mine"]
    assert (row["rank"], row["partial"]) == (None, True)
    assert row["scored"]["with_prior_low"] < row["scored"]["with_prior_sets"] < row["scored"]["with_prior_high"]
    printed = " ".join(invoke(str(path)).stdout.split())
    assert "mine: incomplete rows: anthropic_harmless 40 of 2266, " in printed
    assert "summarize 40 of" not in printed
    assert " and 3 more." in printed
    assert "no rank" not in printed
    result_of(path, 0.8, "mine", {name: n for name, n in COUNTS.items() if name != "hep-go"})
    row = by_model(leaderboard("current", "chat", own_entries([], [path], "current")[0]))["mine"]
    assert row["rank"] is not None  # Chat is whole


def test_sections_alone_give_nearly_the_interval_of_their_subsets() -> None:
    whole = by_model(leaderboard("current", "mean", []))[RAY]["scored"]
    known = {key: whole[key] for key in ("sections", "prior_sets", "mean_of_sections", "with_prior_sets")}
    found = module._with_intervals(Figures(**known), "current")
    for key in ("low", "high", "with_prior_low", "with_prior_high"):
        assert getattr(found, key) == pytest.approx(whole[key], abs=0.0005)
    assert [row["scored"]["interval"] for row in leaderboard("current", "mean", [])["rows"]].count("sections") == 7
    bare = next(row for row in leaderboard("2024-04", "mean", [])["rows"] if row["model"] == "Ziya-7B")
    assert (bare["scored"]["interval"], bare["scored"]["low"]) == (None, None)


def test_a_published_model_scored_again_stands_beside_its_own_row(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "openbmb--UltraRM-13b" / "rewardbench"
    path = result_of(folder / "rewardbench-1.json", 0.7, "openbmb/UltraRM-13b@main")
    path.write_text(json.dumps({**json.loads(path.read_text()), "published": {"prompt": "ultrarm", "label": None}}))
    done = invoke("--json")  # found below results/ by itself
    board = json.loads(done.stdout)
    assert [row["rank"] for row in board["rows"]] == list(range(1, 9))
    (own,) = by_model(board)["UltraRM-13b"]["rescored"]
    assert own["scored"]["mean_of_sections"] == json.loads(path.read_text())["scores"]["current"]["mean_of_sections"]
    lines = [line.strip() for line in invoke().stdout.splitlines()]
    place = next(i for i, line in enumerate(lines) if "UltraRM-13b" in line)
    beside = " ".join(lines[place : place + 6])
    assert beside.index("as published") < beside.index("scored here") < beside.index("prompt ultrarm")
    assert invoke("--plot", "p.svg").exit_code == 0
    assert "<!-- scored here -->" in Path("p.svg").read_text()


def test_what_length_alone_gets_stands_below_ones_own_rows(tmp_path: Path) -> None:
    path = result_of(tmp_path / "m.json", 0.8, "mine", lengths=(2, 1))
    (row,) = own_entries([], [path], "current")[0]
    assert row.length_baseline is not None
    assert set(row.length_baseline.sections.values()) == {1.0}
    assert row.length_baseline.mean_of_sections == 1
    line = next(line for line in invoke(str(path)).stdout.splitlines() if "longer wins" in line)
    assert line.split()[-7:] == ["100.0", "100.0", "100.0", "100.0", "n/a", "100.0", "n/a"]


def test_a_file_of_published_accuracies_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "flat.json"
    model = KNOWN["models"][1]
    path.write_text(json.dumps({"model": "same", **model["subsets"], **model["prior_sets"]}))
    own, _ = own_entries([tmp_path], [path], "current")
    board = by_model(leaderboard("current", "mean", own))
    assert board["same"]["scored"] == {**board[RAY]["scored"], "source": str(path)}


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ({"reference": "sft", "log_probabilities": "sum"}, "dpo against sft"),
        ({"reference": None, "log_probabilities": "avg"}, "dpo, avg"),
    ],
)
def test_a_policy_says_how_it_was_read(tmp_path: Path, policy: dict[str, Any], name: str) -> None:
    path = result_of(tmp_path / "p.json", 0.7, "dpo")
    asked = {"asked": {"max_length": 512}} if policy["reference"] else {}
    name += ", max length 512" if asked else ""
    path.write_text(json.dumps({**json.loads(path.read_text()), "policy": policy, **asked}))
    assert [row.model for row in own_entries([tmp_path], [path], "current")[0]] == [name]


def test_damaged_results_of_runs_are_named_and_those_given_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x" / "rewardbench" / "rewardbench-1.json"
    path.parent.mkdir(parents=True)
    for content, said in (
        ("{", "can't be read as JSON"),
        ('{"benchmark": "rm-bench"}', "a result of rm-bench"),
        ('{"benchmark": "rewardbench-1", "ckpt": "c", "scores": {}}', "holds no scores of the era current"),
        ('{"Chat": 0.9}', "no subset of rewardbench-1"),
    ):
        path.write_text(content)
        own, faults = own_entries([tmp_path / "runs"], [], "current")
        assert own == []
        assert len(faults) == 1
        assert said in faults[0]
        with pytest.raises(DataError) as caught:
            own_entries([tmp_path / "none"], [path], "current")
        assert said in caught.value.message
    done = invoke("--runs", str(tmp_path / "runs"), "--format", "json")
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)["rows"]) == 8
    assert "left out: " in done.stderr


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    given = result_of(tmp_path / "g.json", 0.8, "runs/mistral_lora-20260101-120000-ab12/final")
    done = invoke("--runs", str(tmp_path), str(given))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in done.stdout
    assert next(line.split() for line in lines if RAY in line)[-8:] == [
        "97.8", "50.7", "85.3", "73.9", "74.3", "76.9", "76.6", "75.1-78.6",
    ]  # fmt: skip
    assert sum(line.strip().startswith("as published ") for line in lines) == 8
    assert "78.75, fits no formula" in " ".join(done.stdout.split())


def test_the_markdown_is_a_table_of_ten_columns(tmp_path: Path) -> None:
    given = result_of(tmp_path / "g.json", 0.8, "a|b_c")
    done = invoke("--runs", str(tmp_path), "--format", "markdown", "--era", "2024-03", str(given))
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = list(csv.reader((line.replace("\\|", "¦") for line in table), delimiter="|"))
    assert {len(row) for row in cells} == {12}
    assert len(table) == 2 + 8 * 2 + 2
    assert any("a¦b\\_c" in row[2] for row in cells)


def test_the_json_of_the_command_is_the_board(tmp_path: Path) -> None:
    for arguments in (("--json",), ("--format", "json")):
        done = invoke("--runs", str(tmp_path), *arguments)
        assert json.loads(done.stdout) == leaderboard("current", "mean", [])


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    assert invoke("--era", "2023").exit_code == 2
    for path, said in ((tmp_path / "a.xyz", "xyz"), (tmp_path / "no" / "a.png", "no such folder")):
        error = invoke("--runs", str(tmp_path), "--plot", str(path)).exception
        assert isinstance(error, InputError)
        assert said in error.message
    error = invoke(str(tmp_path / "gone.json")).exception
    assert isinstance(error, InputError)
    assert error.exit_code == 2


@pytest.mark.parametrize("sort", ["mean", "published", "safety"])
def test_the_plot_has_a_dot_for_every_model(tmp_path: Path, sort: str) -> None:
    given = result_of(tmp_path / "g.json", 0.8, "$own_1")
    path = tmp_path / "p.svg"
    done = invoke("--runs", str(tmp_path), "--sort", sort, "--plot", str(path), "--json", str(given))
    assert done.exit_code == 0
    json.loads(done.stdout)
    svg = path.read_text()
    # matplotlib draws text as paths and keeps it as comments
    for row in json.loads(done.stdout)["rows"]:
        assert (f"<!-- {row['model']} -->" in svg) == (row["rank"] is not None)
