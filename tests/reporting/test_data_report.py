"""The ledgers of a recipe's data balance, over-length rows included, and add up with what is trained on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import WORDS, make_tokenizer, write_lines
from rich.console import Console

from rmtrain.data.load import load_data
from rmtrain.data.prepare import LEDGERS, tokenize_splits
from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization
from rmtrain.display import Silent
from rmtrain.recipe.data_schema import DataSection
from rmtrain.reporting.data_report import DataReport, data_report, report_tables
from rmtrain.reporting.table import to_terminal


@pytest.fixture
def report(tmp_path: Path) -> DataReport:
    rows = [{"prompt": f"{WORDS[i]} {WORDS[i + 1]}", "completions": [WORDS[i], WORDS[i + 2]]} for i in range(20)]
    rows = [{**row, "preferences": [[0, 1]]} for row in rows]
    rows[3]["completions"] = ["", WORDS[0]]
    rows[4]["completions"] = [" ".join(WORDS), WORDS[0]]  # over length
    train, test = rows[:15] + rows[5:7], rows[14:]  # two duplicates, one leak
    for name, part in (("train", train), ("test", test)):
        write_lines(tmp_path / f"{name}.jsonl", part)
    section = DataSection(source={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")})
    data = load_data(section, seed=0)
    return data_report(
        data, tokenize_splits(data, Tokenization(Renderer.for_tokenizer(make_tokenizer()), 30, "drop"), Silent())
    )


def test_every_ledger_balances(report: DataReport) -> None:
    shown = report.as_json()
    for split in shown["splits"].values():
        for name in LEDGERS:
            assert split[name]["kept"] + sum(split[name]["dropped"].values()) == split[name]["total"]
    train = shown["splits"]["train"]
    assert train["rows"] == {
        "total": 17,
        "kept": 12,
        "dropped": {"empty completion": 1, "duplicate": 2, "leak": 1, "over length": 1},
    }
    assert train["preferences"]["kept"] == 12
    assert train["completions"]["kept"] == 24
    assert shown["splits"]["test"]["rows"]["kept"] == 6
    assert [(leak["first"], leak["second"], leak["prompts"]) for leak in shown["leaks"]] == [("train", "test", 1)]


def test_lengths_are_those_of_whole_sequences(report: DataReport) -> None:
    train = report.as_json()["splits"]["train"]
    # <s> [INST] two words [/INST] one word </s>
    assert train["lengths"] == {"mean": 7.0, "median": 7.0, "p95": 7.0, "longest": 7}
    assert train["tokens"] == {"prompts_shared": 12 * 9, "prompts_repeated": 12 * 14}


def test_json_takes_the_report(report: DataReport) -> None:
    assert json.loads(json.dumps(report.as_json())) == report.as_json()


def test_prompts_that_splits_share_are_stated_once(report: DataReport) -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(to_terminal(*report_tables(report)), *report.notes)
    assert stream.getvalue().count("prompts in both train and test: 1; rows of train with such a prompt: 1, ") == 1
    assert stream.getvalue().count("train and test") == 1


def test_the_table_shows_every_cause_and_fits_80_columns(report: DataReport) -> None:
    report.splits["train"] = replace(report.splits["train"], source="\x1b[31mred[/] source")
    stream = io.StringIO()
    Console(file=stream, width=80).print(to_terminal(*report_tables(report)))
    text = stream.getvalue()
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    for wanted in (["total", "17", "34", "16"], ["dropped: duplicate", "2", "4", "2"], ["kept", "12", "24", "12"]):
        assert wanted in cells
    assert "red[/] source" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
