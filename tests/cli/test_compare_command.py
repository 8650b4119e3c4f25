"""`rmtrain compare` in this process: rows named, rows that lie with checkpoints, and rows that are scored for it."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml
from bench_cases import write
from conftest import make_config, make_tokenizer, read_lines, write_lines, write_pairs
from published_cases import CASES
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rmtrain.cli.compare as module
from rmtrain.cli.app import run as rmtrain
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.data.render import Renderer
from rmtrain.errors import DataError
from rmtrain.evaluation.results import ScoredRow, read_rows, write_rows
from rmtrain.evaluation.sources import data_name
from rmtrain.files import write_json
from rmtrain.recipe.schema import Recipe
from rmtrain.runs import MANIFEST


def write_model(folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = make_config(num_labels=1, initializer_range=0.3)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", 0)
    write_model(tmp_path / "b", 1)
    write_pairs(tmp_path / "pairs.jsonl", 12)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were loaded and scored."""
    seen: list[str] = []
    whole = module.load
    monkeypatch.setattr(module, "load", lambda ref, *rest: seen.append(ref.where) or whole(ref, *rest))
    return seen


def pairs() -> str:
    """What results of pairs.jsonl are called."""
    return data_name("pairs.jsonl", None)


def lies(name: str, folder: Path | None = None) -> str:
    """The folder of a checkpoint's results: a readable name, and which one it is of those so called."""
    where = str(Path(folder or name).resolve())
    return f"results/{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = rmtrain(["compare", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert rmtrain(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def of(rewards: list[float], better: str = "") -> list[ScoredRow]:
    return [ScoredRow(f"{better}{i}", "s", (reward, 0.5), ((0, 1),), False) for i, reward in enumerate(rewards)]


def test_two_checkpoints_are_scored_on_the_same_data_once(capsys: Any, scored: list[str]) -> None:
    first = answer(capsys, "a", "b", "--data", "pairs.jsonl")
    assert scored == ["a", "b"]
    assert first["groups"] == 12
    assert [Path(path).parent.as_posix() for path in first["rows"]] == [f"{lies(n)}/compare" for n in "ab"]
    accuracies = []
    for name in "ab":
        evaluate(ckpt=name, data="pairs.jsonl", json=True)
        accuracies.append(json.loads(capsys.readouterr().out)["accuracy"])
    assert [first["a"], first["b"]] == pytest.approx(accuracies)
    assert answer(capsys, "a", "b", "--data", "pairs.jsonl")["difference"] == first["difference"]
    assert scored == ["a", "b"]


def test_other_weights_and_other_rows_are_scored_anew(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    answer(capsys, "a", "b", "--data", "pairs.jsonl")
    write_model(tmp_path / "b", 2)
    answer(capsys, "a", "b", "--data", "pairs.jsonl")
    assert scored == ["a", "b", "b"]
    write_pairs(tmp_path / "pairs.jsonl", 9)
    assert answer(capsys, "a", "b", "--data", "pairs.jsonl")["groups"] == 9
    assert scored == ["a", "b", "b", "a", "b"]


def test_scored_data_is_found_again_by_its_recorded_location_and_split(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "data (old)").mkdir()  # a description that looks like a source and its split
    write_pairs(tmp_path / "data (old)" / "test.jsonl", 5)
    evaluate(ckpt="a", data="data (old)", split=["test"])
    (path,) = (tmp_path / lies("a") / "eval").glob("*.json")
    recorded = json.loads(path.read_text())["data"]
    assert (recorded["location"], recorded["split"]) == ("data (old)", "test")
    assert answer(capsys, "a", "b")["groups"] == 5


def test_results_of_version_0_1_are_found_by_their_description(capsys: Any, tmp_path: Path) -> None:
    rows = read_lines("pairs.jsonl")
    Path("splits.json").write_text(json.dumps({"one": rows[:3], "two": rows[3:]}))
    evaluate(ckpt="a", data="splits.json", split=["two"])
    (path,) = (tmp_path / lies("a") / "eval").glob("*.json")
    result = json.loads(path.read_text())
    for key in ("location", "split"):
        del result["data"][key]
    path.write_text(json.dumps(result))
    assert result["data"]["source"] == "splits.json (two)"
    assert answer(capsys, "a", "b")["groups"] == 9


def test_a_model_is_scored_on_what_the_other_was_scored_on(capsys: Any, scored: list[str]) -> None:
    evaluate(ckpt="a", data="pairs.jsonl")
    result = answer(capsys, "a", "b")
    assert scored == ["b"]
    assert result["rows"][0] == f"{lies('a')}/eval/{pairs()}.rows.jsonl"
    assert result["groups"] == 12
    assert answer(capsys, "b", result["rows"][0])["difference"] == pytest.approx(-result["difference"])
    assert answer(capsys, f"{lies('a')}/eval/{pairs()}.json", "b")["difference"] == result["difference"]
    assert scored == ["b"]
    evaluate(ckpt="b", data="pairs.jsonl")
    assert answer(capsys, "a", "b")["rows"][1] == f"{lies('b')}/eval/{pairs()}.rows.jsonl"


def test_results_of_another_checkpoint_of_the_same_name_are_not_taken(
    capsys: Any, scored: list[str], tmp_path: Path
) -> None:
    write_model(tmp_path / "elsewhere" / "a", 5)
    evaluate(ckpt="a", data="pairs.jsonl")
    result = answer(capsys, "elsewhere/a", "a")
    assert scored == ["elsewhere/a"]
    assert result["rows"][0] != result["rows"][1]
    assert result["difference"] != 0


def test_rows_of_weights_that_were_replaced_are_not_taken(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    for name in "ab":
        evaluate(ckpt=name, data="pairs.jsonl")
    before = answer(capsys, "a", "b")
    assert scored == []
    write_model(tmp_path / "b", 7)
    result = answer(capsys, "a", "b")
    assert scored == ["b"]
    assert result["rows"][0] == before["rows"][0]
    evaluate(ckpt="b", data="pairs.jsonl", json=True)
    assert result["b"] == json.loads(capsys.readouterr().out)["accuracy"] != before["b"]
    assert answer(capsys, "a", "b")["rows"][1] == before["rows"][1]  # scored again there
    capsys.readouterr()
    write_model(tmp_path / "b", 8)
    assert rmtrain(["compare", "a", "b"]) == 0
    assert f"b: its weights have changed since {before['rows'][1]} was written" in capsys.readouterr().err


def test_checkpoints_of_one_name_do_not_share_a_folder_of_results(capsys: Any, tmp_path: Path) -> None:
    found = []
    for parent in "xy":
        write_model(tmp_path / parent / "final", ord(parent))
        evaluate(ckpt=f"{parent}/final", data="pairs.jsonl", json=True)
        found.append(json.loads(capsys.readouterr().out))
    assert [result["rows"] for result in found] == [
        f"{lies('final', tmp_path / parent / 'final')}/eval/{pairs()}.rows.jsonl" for parent in "xy"
    ]
    assert [json.loads(Path(r["rows"].replace(".rows.jsonl", ".json")).read_text()) for r in found] == found
    assert rmtrain(["compare", "x/final", "y/final"]) == 0


def test_each_side_may_be_read_in_its_own_way(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for seed, name in enumerate(("policy", "sft")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(make_config(initializer_range=0.3)).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    shutil.copytree("a", "two")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        AutoModelForSequenceClassification.from_config(make_config(num_labels=2)).save_pretrained("two")
    policy = ("policy", "--data", "pairs.jsonl", "--reference-b", "sft")
    against, again = answer(capsys, "a", *policy), answer(capsys, "a", *policy)
    assert against == again
    assert scored == ["a", "policy"]
    write_model(tmp_path / "x", 1)
    alone = answer(
        capsys, "policy", "policy", "--data", "pairs.jsonl", "--reference-free-a", "avg", "--reference-b", "sft"
    )
    assert (alone["b"], alone["rows"][1]) == (against["b"], against["rows"][1])
    labels = answer(capsys, "two", "two", "--data", "pairs.jsonl", "--label-a", "0", "--label-b", "1")
    assert labels["rows"][0] != labels["rows"][1]
    assert labels["difference"] != 0
    cut = answer(capsys, "a", "a", "--data", "pairs.jsonl", "--prompt-b", "raw", "--max-length", "20")
    assert [name for name in ("max-length-20", "prompt-raw-max-length-20") if name in cut["rows"][1]] == [
        "max-length-20", "prompt-raw-max-length-20",
    ]  # fmt: skip
    assert "names rows that are already scored, so it takes no --label-a" in refusal(
        capsys, labels["rows"][0], "a", "--label-a", "0"
    )
    assert "--max-length and --dtype are for checkpoints" in refusal(capsys, *labels["rows"], "--dtype", "float32")


def test_pairrm_is_refused_where_rewards_are_needed(capsys: Any, tmp_path: Path) -> None:
    from model.test_pair_rm import write as write_pair_rm

    folder = write_pair_rm(tmp_path / "PairRM-hf")
    for benchmark in ("rm-bench", "rewardbench-2"):
        source = write(benchmark, tmp_path / f"{benchmark}.jsonl")
        said = refusal(capsys, "a", folder, "--benchmark", benchmark, "--data", source)
        assert f"{benchmark} needs rewards" in said


def test_the_benchmark_is_what_the_result_says_it_is(capsys: Any, tmp_path: Path) -> None:
    source = write("judgebench", tmp_path / "judge.jsonl")
    result = answer(capsys, "a", "b", "--benchmark", "judgebench", "--data", source)
    assert result["benchmark"] == "judgebench"
    assert answer(capsys, *result["rows"])["benchmark"] == "judgebench"  # the rows alone
    pairs = [json.loads(line) | {"source": "math"} for line in Path("pairs.jsonl").read_text().splitlines()]
    write_lines("own.jsonl", pairs)
    own = answer(capsys, "a", "b", "--data", "own.jsonl")
    assert (own["benchmark"], list(own["by_source"])) == (None, ["math"])
    ties = answer(
        capsys, "a", "b", "--benchmark", "rewardbench-2", "--data", write("rewardbench-2", tmp_path / "2.jsonl")
    )
    assert ties["sections"]["Ties"]["prompts"] == 1
    assert "different benchmarks: judgebench and rewardbench-2" in refusal(capsys, result["rows"][0], ties["rows"][0])


def test_a_run_against_a_published_layout_on_the_same_rows(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "bench.jsonl", ROWS)
    run, case = write_run(tmp_path / "runs" / "r1", 0, "pairs.jsonl"), CASES["oasst"]
    published = case.write(tmp_path)
    options = ("--benchmark", "rewardbench-1", "--data", "bench.jsonl")
    result = answer(capsys, str(run), str(published), *options)
    assert scored == [str(run / "final"), str(published)]
    assert [result[key] for key in ("only_a", "only_b", "not_alike", "groups", "n")] == [0, 0, 0, 12, 12]
    of_run, of_published = map(Path, result["rows"])
    tokenizer = AutoTokenizer.from_pretrained(published)
    for row, scored_row in zip(ROWS, read_rows(of_published), strict=True):
        texts = [case.rendered.format(p=row["prompt"], r=row[key]) for key in ("chosen", "rejected")]
        truth = [case.reward(tokenizer(text)["input_ids"]) for text in texts]
        assert scored_row.rewards == pytest.approx(truth, abs=2e-5)
    right = [np.mean([row.rewards[0] > row.rewards[1] for row in read_rows(path)]) for path in (of_run, of_published)]
    assert [result["a"], result["b"]] == pytest.approx(right)
    beside = json.loads(of_published.with_name(of_published.name.replace(".rows.jsonl", ".json")).read_text())
    assert beside["published"]["layout"] == "oasst-rm-pythia"
    assert str(run) in str(of_run)


ROWS = [
    {"prompt": f"w{i}", "chosen": f"w{i + 9} w3", "rejected": f"w4 w{i}", "subset": subset, "id": i}
    for i, subset in enumerate(["hep-go"] * 6 + ["math-prm"] * 6)
]


def test_a_benchmark_of_local_rows(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "bench.jsonl", ROWS)
    options = ("--benchmark", "rewardbench-1", "--data", "bench.jsonl")
    result = answer(capsys, "a", "b", *options)
    assert scored == ["a", "b"]
    assert (result["benchmark"], result["n"], result["sections"]["Chat"], result["score"]) == (
        "rewardbench-1",
        12,
        None,
        None,
    )
    rewardbench(ckpt="b", data="bench.jsonl")
    again = answer(capsys, "a", "b", *options)
    assert scored == ["a", "b"]
    assert again["rows"][1] == f"{lies('b')}/rewardbench/rewardbench-1.rows.jsonl"
    assert again["difference"] == result["difference"]
    assert answer(capsys, "a", "b", "--benchmark", "rewardbench-1")["n"] == 12  # on the rows that b was scored on
    bench = json.loads(Path(f"{lies('b')}/rewardbench/rewardbench-1.json").read_text())
    assert again["by_source"]["hep-go"]["b"] == pytest.approx(bench["subsets"]["hep-go"]["accuracy"])
    assert not Path(f"{lies('a')}/rewardbench").exists()


def write_run(folder: Path, seed: int, source: str) -> Path:
    """A finished run whose test split is held out of its source."""
    write_model(folder / "final", seed)
    recipe = Recipe.model_validate(
        {
            "model": {"name": "base"},
            "data": {"source": source, "holdout": {"test": 0.5}},
        }
    )
    values = json.loads(recipe.model_dump_json())
    contract = Renderer.for_tokenizer(make_tokenizer()).contract()
    write_json(folder / "final" / "rmtrain.json", {"format": 1, "contract": contract, "recipe": values})
    write_json(folder / MANIFEST, {"state": "finished"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_run_against_another_model_on_the_runs_own_test_split(capsys: Any, scored: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "r1", 0, "pairs.jsonl")
    evaluate(ckpt="runs/r1", split=["test"])
    held_out = {row.id for row in read_rows(Path("runs/r1/eval/test.rows.jsonl"))}
    assert 0 < len(held_out) < 12
    result = answer(capsys, "runs/r1", "b")
    assert scored == ["b"]
    assert {row.id for row in read_rows(Path(result["rows"][1]))} == held_out
    assert [result[key] for key in ("only_a", "only_b", "not_alike", "groups")] == [0, 0, 0, len(held_out)]
    assert answer(capsys, "runs/r1:test", "b")["difference"] == result["difference"]
    assert scored == ["b"]


def test_what_both_have_is_compared_test_first(capsys: Any, tmp_path: Path) -> None:
    for run, seed in (("r1", 0), ("r2", 1)):
        folder = write_run(tmp_path / "runs" / run, seed, "pairs.jsonl")
        (folder / "eval").mkdir()
        for split in ("another", "test", "validation"):
            write_rows(folder / "eval" / f"{split}.rows.jsonl", of([1.0, float(seed), 1.0], split))
    result = answer(capsys, "runs/r1", "runs/r2")
    assert result["rows"] == ["runs/r1/eval/test.rows.jsonl", "runs/r2/eval/test.rows.jsonl"]
    assert result["difference"] == pytest.approx(-1 / 3)
    assert list(result)[:7] == ["n", "a", "b", "difference", "low", "high", "mcnemar_p"]
    result = answer(capsys, "runs/r1", "runs/r2", "--split", "validation")
    assert result["rows"][1] == "runs/r2/eval/validation.rows.jsonl"
    assert answer(capsys, "runs/r1:another", "runs/r2")["rows"][1] == "runs/r2/eval/another.rows.jsonl"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_and_the_plain_sentences(capsys: Any, monkeypatch: Any, tmp_path: Path, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rng = np.random.default_rng(0)
    rows = of([float(x) for x in rng.integers(0, 2, 200)])
    rows = [row._replace(source=f"long-source-name/{int(row.id) % 3}") for row in rows]
    write_rows(tmp_path / "x.rows.jsonl", rows)
    write_rows(tmp_path / "y.rows.jsonl", [row._replace(rewards=(1.0, 0.0)) for row in rows[:150]])
    assert rmtrain(["compare", "x.rows.jsonl", "y.rows.jsonl"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    assert "B is better, by " in out
    assert "Rows left out: 50 only in A." in out
    assert "100.0" in next(line for line in out.splitlines() if line.startswith("all rows"))
    assert rmtrain(["compare", "x.rows.jsonl", "x.rows.jsonl"]) == 0
    assert "A and B are equal on each of 200 prompts." in capsys.readouterr().out


def test_what_can_not_be_compared_says_why(capsys: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "x.rows.jsonl", of([1.0]))
    write_rows(tmp_path / "y.rows.jsonl", of([1.0], "other"))
    assert "no common row" in refusal(capsys, "x.rows.jsonl", "y.rows.jsonl")
    assert "z.rows.jsonl: no such file" in refusal(capsys, "x.rows.jsonl", "z.rows.jsonl")
    assert "neither A nor B has been scored yet" in refusal(capsys, "a", "b")
    assert "nothere: no such folder" in refusal(capsys, "nothere", "b")
    assert "nothere and runs/other: no such folder" in refusal(capsys, "nothere", "runs/other")
    assert "neither A nor B was scored on 'test' yet" in refusal(capsys, "a", "b", "--split", "test")
    assert "x.rows.jsonl: no result beside it names the data" in refusal(capsys, "x.rows.jsonl", "a")
    assert "both name rows" in refusal(capsys, "x.rows.jsonl", "y.rows.jsonl", "--data", "pairs.jsonl")
    assert "a: no rows of the split 'test'" in refusal(capsys, "a:test", "b")
    assert "./gone: no such folder" in refusal(capsys, "./gone", "a", "--data", "pairs.jsonl")
    with pytest.raises(DataError):
        module.compare("a", "b", data="gone.jsonl")


def test_rows_of_no_preferences_are_compared_and_said_to_be_none(capsys: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "n.rows.jsonl", [ScoredRow("1", "", (1.0,), (), False)])
    assert rmtrain(["compare", "n.rows.jsonl", "n.rows.jsonl"]) == 0
    assert "There are no preferences to compare on." in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_score_the_same(capsys: Any, tmp_path: Path) -> None:
    alone = answer(capsys, "a", "b", "--data", "pairs.jsonl")
    for path in alone["rows"]:
        Path(path).unlink()
    command = [sys.executable, "-m", "rmtrain", "compare", "a", "b", "--data", "pairs.jsonl", "--json"]
    done = warm.run([*command, "--num-processes", "2"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone
