"""How a checkpoint is read, through the commands: prompt, length, dtype, packing; and scoring that was interrupted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench_cases import ROWS, answer, write
from conftest import make_tokenizer, read_lines, write_lines

from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.data.render import Renderer
from rmtrain.errors import InputError
from rmtrain.recipe.schema import Recipe
from rmtrain.scoring import batches as scoring
from rmtrain.scoring.kinds import open_scorer
from rmtrain.scoring.scorer import ScorerRequest, ScoringOptions

pytestmark = pytest.mark.usefixtures("inside")


def test_a_policy_without_a_template_takes_a_prompt(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(models / "policy", bare)
    (bare / "chat_template.jinja").unlink()
    common: dict[str, Any] = {"ckpt": str(bare), "data": write("rewardbench-1", tmp_path / "rows.jsonl")}
    with pytest.raises(InputError, match="no chat template"):
        rewardbench(**common, reference=str(models / "sft"))
    found = [answer(capsys, **common, reference_free="sum", prompt=prompt) for prompt in ("raw", "tulu")]
    assert [result["policy"]["prompt"] for result in found] == ["raw", "tulu"]
    assert found[0]["rows"] != found[1]["rows"]
    flat = json.loads(Path(found[0]["rows"]).with_name("rewardbench-1.flat.json").read_text())
    assert flat["chat_template"] == "raw"


@pytest.mark.parametrize("free", [None, "sum"])
def test_length_and_dtype_are_chosen_recorded_and_told_apart(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], free: Any
) -> None:
    rows = [{**row, "prompt": "w1 " * 40} for row in ROWS["rewardbench-1"]]
    write_lines(tmp_path / "rows.jsonl", rows)
    common: dict[str, Any] = {
        "ckpt": str(models / ("policy" if free else "rm")), "data": "rows.jsonl", "reference_free": free,
    }  # fmt: skip
    plain = answer(capsys, **common)
    cut = answer(capsys, **common, max_length=20)
    half = answer(capsys, **common, dtype="bfloat16")
    assert [(r["dtype"], r["max_length"], r["truncated"]) for r in (plain, cut, half)] == [
        ("float32", 512, 0), ("float32", 20, 3), ("bfloat16", 512, 0),
    ]  # fmt: skip
    rewards = [Path(result["rows"]).read_text() for result in (plain, cut, half)]
    assert [result["asked"] for result in (plain, cut, half)] == [{}, {"max_length": 20}, {"dtype": "bfloat16"}]
    assert len({*rewards}) == len({result["rows"] for result in (plain, cut, half)}) == 3
    with pytest.raises(InputError, match=r"--max-length 600: .* has 512 positions"):
        rewardbench(**common, max_length=600)


def test_length_and_dtype_are_in_the_fingerprint(models: Path) -> None:
    display = TerminalDisplay()
    for kind in ({}, {"reference_free": "avg"}):
        where = str(models / ("policy" if kind else "rm"))
        readings = [
            ScoringOptions(**kind),
            ScoringOptions(**kind, max_length=20),
            ScoringOptions(**kind, dtype="bfloat16"),
        ]  # type: ignore[arg-type]
        loaded = [load(choose(where, Path("runs"), display, reading), display).info for reading in readings]
        assert len({one.fingerprint for one in loaded}) == 3  # parts of an interrupted `score` are known by it
        assert len({one.weights for one in loaded}) == 1


@pytest.mark.parametrize("kind", [{}, {"reference_free": "avg"}], ids=["reward model", "policy"])
def test_the_content_of_a_prompt_file_is_in_the_fingerprint(kind: dict[str, Any], models: Path, tmp_path: Path) -> None:
    """By it scored rows are found again."""
    prompt = tmp_path / "own.jinja"
    options = ScoringOptions(**kind, prompt=str(prompt))
    found = set()
    for mark in ("w1", "w2"):
        prompt.write_text("{% for m in messages %}{{ m['content'] }} " + mark + " {% endfor %}")
        found.add(open_scorer(ScorerRequest(str(models / ("policy" if kind else "rm")), options)).info.fingerprint)
    assert len(found) == 2


@pytest.mark.parametrize("command", [evaluate, rewardbench])
def test_scoring_that_was_killed_goes_on_from_the_rows_on_disk(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    rows = [{**ROWS["rewardbench-1"][0], "id": i, "chosen": f"w{i} w{i % 7}"} for i in range(12)]
    write_lines(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"ckpt": str(models / "rm"), "data": "rows.jsonl", "tokens_per_batch": 40, "json": True}
    command(**options)
    whole = json.loads(capsys.readouterr().out)
    path = Path(whole["rows"])
    written = read_lines(path)
    shutil.rmtree("results")
    scored: list[int] = []
    true = scoring._score_batch

    def dying(model: Any, groups: Any, *rest: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(groups))
        return true(model, groups, *rest)

    monkeypatch.setattr(scoring, "_score_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        command(**options)
    assert not path.exists()
    before = sum(scored)
    monkeypatch.setattr(scoring, "_score_batch", lambda *given: scored.append(len(given[1])) or true(*given))
    command(**options)
    close(json.loads(capsys.readouterr().out), whole)
    close(read_lines(path), written)
    assert 0 < before < sum(scored) == 12
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("command", [evaluate, rewardbench])
def test_packing_changes_no_figure(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    rows = [
        {"prompt": f"w{i} w2", "chosen": f"w{i % 5} w3", "rejected": f"w4 w{i} w{i}", "subset": "hep-go", "id": i}
        for i in range(9)
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    found = []
    for packing in ("none", "shared_prompt"):
        folder = tmp_path / packing
        shutil.copytree(models / "rm", folder)
        recipe = Recipe.model_validate(
            {"model": {"name": "b", "dtype": "float32", "packing": packing}, "data": {"source": "s"}}
        )
        contract = Renderer.for_tokenizer(make_tokenizer()).contract()
        sidecar = {"format": 1, "contract": contract, "recipe": json.loads(recipe.model_dump_json())}
        (folder / "rmtrain.json").write_text(json.dumps(sidecar))
        command(ckpt=str(folder), data="rows.jsonl", json=True)
        found.append(json.loads(capsys.readouterr().out))
    close(*({**result, "ckpt": "", "rows": "", "weights_fingerprint": ""} for result in found))


def close(one: Any, other: Any) -> None:
    """The same JSON, its numbers within 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            close(mine, theirs)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    else:
        assert one == other
