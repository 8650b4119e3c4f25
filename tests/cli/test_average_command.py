"""`rmtrain average` as users call it: a checkpoint like any other, its parts beside it, and the greedy choice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from average_cases import make_part
from conftest import write_pairs

from rmtrain.cli.app import run

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def parts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("parts")
    return [str(make_part(place / name, base, noise)) for noise, name in enumerate("abc", start=3)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "pairs.jsonl", 30))


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_average_is_a_checkpoint_like_any_other(
    parts: list[str], rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = answered(capsys, "average", *parts, "--output", "mean", "--data", rows, "--weights", "1,1,2")
    assert [part["weight"] for part in made["parts"]] == [0.25, 0.25, 0.5]
    assert (made["rank"], made["rank_loss"], made["method"]) == (6, 0.0, "given")
    own = answered(capsys, "eval", "--ckpt", "mean", "--data", rows)
    assert own["accuracy"] == made["scores"]["accuracy"]
    assert (own["accuracy_low"], own["n"]) == (made["scores"]["low"], made["scores"]["n"])
    for part, score in zip(parts, made["scores"]["parts"], strict=True):
        alone = answered(capsys, "eval", "--ckpt", part, "--data", rows)
        assert (alone["accuracy"], alone["loss"]) == (score["accuracy"], score["loss"])
        assert score["difference"] == pytest.approx(own["accuracy"] - alone["accuracy"])
        assert score["difference_low"] <= score["difference"] <= score["difference_high"]
    recorded = json.loads(Path("mean/rmtrain.json").read_text())["averaged"]
    assert recorded["parts"] == made["parts"]
    assert recorded["scores"] == made["scores"]
    card = Path("mean/README.md").read_text()
    assert "Its weights are an average of several checkpoints" in card
    assert "0.5 × c" in card
    assert str(Path(parts[0]).parent) not in card
    assert run(["score", rows, "--ckpt", "mean", "--output", "scored.jsonl"]) == 0
    exported = answered(capsys, "export", "--ckpt", "mean", "--output", "plain")
    assert exported["merged"] is True
    places = json.loads(Path("plain/rmtrain.json").read_text())["averaged"]["parts"]
    assert [part["ckpt"] for part in places] == ["./a", "./b", "./c"]


@pytest.mark.slow
def test_the_greedy_choice_keeps_what_does_not_lower_the_accuracy(
    parts: list[str], rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = answered(capsys, "average", *parts, "--output", "soup", "--data", rows, "--greedy")
    alone = {part: answered(capsys, "eval", "--ckpt", part, "--data", rows)["accuracy"] for part in parts}
    ranked = sorted(parts, key=lambda part: -alone[part])
    kept, best = ranked[:1], alone[ranked[0]]
    assert made["steps"][0] == {"ckpt": ranked[0], "accuracy": best, "kept": True}
    for number, (part, step) in enumerate(zip(ranked[1:], made["steps"][1:], strict=True)):
        tried = answered(capsys, "average", *kept, part, "--output", f"try{number}", "--data", rows)
        accuracy = tried["scores"]["accuracy"]
        assert step == {"ckpt": part, "accuracy": accuracy, "kept": accuracy >= best}
        if step["kept"]:
            kept, best = [*kept, part], accuracy
    assert [part["ckpt"] for part in made["parts"]] == kept
    assert made["scores"]["accuracy"] == best
    assert not Path(".soup.candidate").exists()


def test_what_people_read(parts: list[str], rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["average", *parts[:2], "--output", "mean", "--data", rows]) == 0
    told = capsys.readouterr().out
    assert told.startswith("average: mean\n2 checkpoints, equal weights: 0.5 × ")
    assert "an adapter of rank 4, which is exact" in told
    assert "paired by prompt; p: McNemar's test." in " ".join(told.split())
    assert run(["average", parts[0], "--output", "further", "--extrapolate", "0.5", "--rank", "1"]) == 0
    told = capsys.readouterr().out
    assert "extrapolated from the start of training: start + 1.5 (mean - start)" in told
    assert "% of the norm of the change is lost" in told
    assert "add --split validation" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{0}", "--output", "out"], "at least two checkpoints"),
        (["{0}", "{1}", "--output", "out", "--weights", "1"], "1 weights for 2 checkpoints"),
        (["{0}", "{1}", "--output", "out", "--weights", "1,-1"], "each must be above 0"),
        (["{0}", "{1}", "--output", "out", "--weights", "1,1", "--greedy"], "exclude each other"),
        (["{0}", "{1}", "--output", "out", "--extrapolate", "-1"], "must be above -1"),
        (["{0}", "{1}", "--output", "{0}"], "exists"),
        (["{0}", "nowhere/else", "--output", "out"], "nowhere/else"),
        (["{0}", "{1}", "{0}/", "--output", "out"], "are the same checkpoint"),
    ],
)
def test_wrong_arguments_are_refused(
    parts: list[str], arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["average", *(argument.format(*parts) for argument in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_rank_is_for_adapters(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(models / "rm", tmp_path / "other")
    assert run(["average", str(models / "rm"), str(other), "--output", "out", "--rank", "3"]) == 2
    assert "--rank is for adapters" in capsys.readouterr().err
