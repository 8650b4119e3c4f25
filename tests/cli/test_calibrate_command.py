"""`rmtrain calibrate` as users call it, and what applies its result."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from average_cases import make_part
from conftest import make_groups, read_lines

from rmtrain import RewardFunction
from rmtrain.cli.app import run
from rmtrain.model.calibration import read_calibration

pytestmark = pytest.mark.usefixtures("inside")
WAYS: tuple[tuple[str, ...], ...] = ((), ("--calibrated",))
SPREAD = 0.5  # what gaps are divided by for the log-odds of the preferences drawn, in standard deviations of them


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def lines_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return read_lines(result["rows"])


@pytest.fixture(scope="module")
def rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose preferences follow the model's rewards by chance, as Bradley and Terry have it."""
    place = tmp_path_factory.mktemp("calibrated")
    make_part(place / "model", base, 3)
    groups, rng = make_groups(250, k=2), np.random.default_rng(0)
    path = place / "rows.jsonl"
    rewards = RewardFunction(place / "model")
    texts = [[completion[0].content for completion in group.completions] for group in groups]
    prompts = [group.prompt[0].content for group in groups]
    flat = rewards([p for p in prompts for _ in range(2)], [text for pair in texts for text in pair])
    gaps = np.subtract(flat[::2], flat[1::2])
    with path.open("w") as stream:
        for prompt, (one, two), gap in zip(prompts, texts, gaps, strict=True):
            first = rng.random() < 1 / (1 + np.exp(-gap / (SPREAD * gaps.std())))
            chosen, rejected = (one, two) if first else (two, one)
            stream.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    (place / "temperature").write_text(str(SPREAD * gaps.std()))
    return path


@pytest.fixture
def model(rows: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(rows.with_name("model"), tmp_path / "model"))


def test_from_calibration_to_scores_and_export(model: str, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = answered(capsys, "calibrate", model, "--data", str(rows), "--no-length", "--holdout", "0.4")
    assert made["temperature"] == pytest.approx(float(rows.with_name("temperature").read_text()), rel=0.4)
    assert made["groups"] + made["held_out"] == 250
    assert set(made["figures"]) == {"accuracy", "loss", "ece", "length_correlation"}
    made = answered(capsys, "calibrate", model, "--data", str(rows))
    calibration = read_calibration(Path(model))
    assert calibration is not None
    assert calibration.lengths
    plain, own = (lines_of(answered(capsys, "eval", "--ckpt", model, "--data", str(rows), *more)) for more in WAYS)
    for one, two in zip(plain, own, strict=True):
        assert tuple(two["rewards"]) == calibration.apply(tuple(one["rewards"]), tuple(one["lengths"]))
    reward = RewardFunction(model, calibrated=True)
    first = json.loads(rows.read_text().splitlines()[0])
    assert reward.score(first["prompt"], [first["chosen"], first["rejected"]]) == pytest.approx(own[0]["rewards"])
    assert run(["score", str(rows), "--ckpt", model, "--calibrated", "--output", "scored.jsonl"]) == 0
    scored = json.loads(Path("scored.jsonl").read_text().splitlines()[0])
    assert scored["rewards"] == own[0]["rewards"]
    exported = answered(capsys, "export", "--ckpt", model, "--output", "plain")
    config = json.loads(Path("plain/config.json").read_text())
    assert (config["mean"], config["std"]) == (made["reward_mean"], made["reward_std"])
    assert f'"logit_mean": {made["reward_mean"]}' in exported["serve_standardised"]
    again = answered(capsys, "eval", "--ckpt", "plain", "--data", str(rows), "--calibrated")
    assert lines_of(again)[0]["rewards"] == pytest.approx(own[0]["rewards"], abs=1e-4)


def test_members_of_an_ensemble_are_calibrated_each(
    model: str, rows: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(shutil.copytree(model, tmp_path / "other"))
    for each, more in ((model, "--length"), (other, "--no-length")):
        assert run(["calibrate", each, "--data", str(rows), more]) == 0
    told = capsys.readouterr().out
    assert "before" in told
    assert "calibration.json; rmtrain eval --ckpt" in told
    data = ("--data", str(rows), "--calibrated")
    both = answered(capsys, "eval", "--ckpt", f"{model},{other}", "--combine", "mean", *data)
    alone = [answered(capsys, "eval", "--ckpt", each, *data) for each in (model, other)]
    for mean, one, two in zip(*map(lines_of, (both, *alone)), strict=True):
        np.testing.assert_allclose(mean["rewards"], np.mean([one["rewards"], two["rewards"]], axis=0), atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_a_result_stays_when_the_model_is_calibrated_again(
    model: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], members: int
) -> None:
    other = str(shutil.copytree(model, tmp_path / "other"))
    data = ("--data", str(rows))
    named = ("--ckpt", model) if members == 1 else ("--ckpt", f"{other},{model}", "--combine", "mean")
    assert run(["calibrate", other, *data]) == 0
    files = []
    for how in ("--length", "--no-length", "--length"):
        assert run(["calibrate", model, *data, how]) == 0
        capsys.readouterr()
        files.append(answered(capsys, "eval", *named, *data, "--calibrated")["rows"])
    first, second, again = files
    assert again == first != second  # the same calibration has the same place
    compared = answered(capsys, "compare", first, second)
    assert compared["n"] == len(rows.read_text().splitlines())
    rewards = [[row["rewards"] for row in read_lines(path)] for path in (first, second)]
    assert rewards[0] != rewards[1]


def test_what_can_not_be_calibrated_is_refused(
    model: str, rows: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["eval", "--ckpt", model, "--data", str(rows), "--calibrated"]
    assert run(ask) == 2
    assert "has no calibration" in capsys.readouterr().err
    assert run([*ask, "--reference-free", "avg"]) == 2
    assert "leave out --prompt" in capsys.readouterr().err
    lines = rows.read_text().splitlines()
    turned = [json.loads(line) for line in lines]
    few, wrong = tmp_path / "few.jsonl", tmp_path / "wrong.jsonl"
    few.write_text("\n".join(lines[:12]) + "\n")
    wrong.write_text(
        "".join(json.dumps({**r, "chosen": r["rejected"], "rejected": r["chosen"]}) + "\n" for r in turned)
    )
    for path, told in ((few, "too few"), (wrong, "no temperature fits")):
        assert run(["calibrate", model, "--data", str(path)]) == 2
        assert told in capsys.readouterr().err
    assert not (Path(model) / "calibration.json").exists()
    assert run(["calibrate", model, "--data", str(rows)]) == 0
    assert run(ask) == 0
    path = Path(model) / "calibration.json"
    whole = json.loads(path.read_text())
    for change, told in (
        ({"format": 3}, "format"),
        ({"temperature": 0}, "temperature"),
        ({"lengths": [2, 1]}, "ascending"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        capsys.readouterr()
        assert run(ask) == 2
        assert told in capsys.readouterr().err
    path.write_text(json.dumps(whole))
    make_part(tmp_path / "model2", base, 4)
    shutil.copy(tmp_path / "model2/adapter_model.safetensors", model)
    assert run(ask) == 2
    assert "was fitted for other weights" in capsys.readouterr().err
