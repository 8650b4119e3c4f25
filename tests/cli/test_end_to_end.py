"""The verbs as a user runs them: recipe → run folder → eval, score, rewardbench, compare; what they write and print."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from conftest import read_lines, write_base, write_lines, write_pairs
from hub_server import HubServer
from sessions import Session

from rmtrain.cli.app import run

pytestmark = pytest.mark.slow

RECIPE = """
model: {{name: {model}, dtype: float32}}
lora: {{rank: 4, alpha: 8}}
data:
  source: {{train: {data}/train.jsonl, validation: {data}/validation.jsonl, test: {data}/test.jsonl}}
  splits: {{train: train, validation: train, test: train}}
  max_length: 64
loss: {{sum_to_zero: 0.01, length_decorrelation: 0.01}}
optim: {{learning_rate: 3.0e-3, epochs: 2, global_batch_size: 16, tokens_per_microbatch: 600}}
run: {{folder: {runs}}}
"""


def rmtrain(*arguments: str | Path, code: int = 0) -> SimpleNamespace:
    """Run a command in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        returncode = run([*map(str, arguments)])
    return checked(SimpleNamespace(returncode=returncode, stdout=output.getvalue(), stderr=errors.getvalue()), code)


def started(*arguments: str | Path, code: int = 0, **environment: str) -> Any:
    """Run a command in a process of its own, as a user does: where it starts others, or reads the environment first."""
    done = warm.run(
        [sys.executable, "-m", "rmtrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )
    return checked(done, code)


def checked(done: Any, code: int = 0) -> Any:
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def answer(done: Any) -> Any:
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_base(folder / "base")
    for seed, (name, count) in enumerate({"train": 120, "validation": 40, "test": 60}.items()):
        write_pairs(folder / f"{name}.jsonl", count, seed)
    recipe = RECIPE.format(model=folder / "base", data=folder, runs=folder / "runs")
    (folder / "tiny.yaml").write_text(recipe)
    return folder


@pytest.fixture(scope="module")
def trained(work: Path) -> dict[str, Any]:
    return answer(started("train", work / "tiny.yaml", "--json"))  # type: ignore[no-any-return]


def test_train_writes_the_promised_run_folder_and_json(trained: dict[str, Any]) -> None:
    run = Path(trained["run"])
    keys = {"run", "steps", "train_loss", "tokens", "tokens_per_second", "pairs_per_second", "peak_memory_bytes"}
    assert keys | {"splits"} == set(trained)
    assert trained["steps"] == 16
    for name in ("recipe.yaml", "manifest.json", "metrics.jsonl", "checkpoints", "final", "report.html"):
        assert (run / name).exists(), name
    assert json.loads((run / "manifest.json").read_text())["state"] == "finished"
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 17))
    mean = sum(line["loss"] for line in lines if "loss" in line) / 16
    assert trained["train_loss"] == pytest.approx(mean, rel=1e-6)
    for split, n in {"validation": 40, "test": 60}.items():
        result = trained["splits"][split]
        assert result["groups"] == n
        assert result == json.loads((run / "eval" / f"{split}.json").read_text())
        assert len((run / "eval" / f"{split}.rows.jsonl").read_text().splitlines()) == n


def test_training_learns_the_rule(trained: dict[str, Any]) -> None:
    test = trained["splits"]["test"]
    assert test["accuracy_low"] > max(0.55, test["length_baseline"])
    assert test["accuracy_low"] <= test["accuracy"] <= test["accuracy_high"]


def test_eval_repeats_the_figures_of_train_on_the_newest_run(work: Path, trained: dict[str, Any]) -> None:
    done = rmtrain("eval", "--split", "test", "--runs", work / "runs", "--json")
    assert trained["run"] in done.stderr  # it says which run it took
    mine, theirs = answer(done), trained["splits"]["test"]
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-7)


@pytest.mark.parametrize("number", [2, 3])
def test_eval_on_several_processes_gives_the_same_rows(work: Path, trained: dict[str, Any], number: int) -> None:
    run = Path(trained["run"])
    rows = read_lines(run / "eval/test.rows.jsonl")
    done = started(
        "eval", "--ckpt", run, "--split", "test", "--num-processes", str(number), "--tokens-per-batch", "300", "--json"
    )
    assert answer(done)["accuracy"] == trained["splits"]["test"]["accuracy"]
    again = read_lines(run / "eval/test.rows.jsonl")
    assert [row["id"] for row in again] == [row["id"] for row in rows]
    for before, after in zip(rows, again, strict=True):
        assert after["rewards"] == pytest.approx(before["rewards"], abs=1e-6)


def test_min_accuracy_decides_the_exit_code(work: Path, trained: dict[str, Any]) -> None:
    rmtrain("eval", "--ckpt", trained["run"], "--split", "test", "--min-accuracy", "0.5")
    done = rmtrain("eval", "--ckpt", trained["run"], "--split", "test", "--min-accuracy", "0.999", code=1)
    assert "below --min-accuracy" in done.stderr


def test_score_keeps_rows_and_order_and_agrees_with_eval(work: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    rmtrain("score", work / "test.jsonl", "--output", out, "--ckpt", trained["run"])
    rows = read_lines(work / "test.jsonl")
    scored = read_lines(out)
    evaluated = (Path(trained["run"]) / "eval/test.rows.jsonl").read_text().splitlines()
    assert [{key: row[key] for key in row if key != "rewards"} for row in scored] == rows
    for row, line in zip(scored, evaluated, strict=True):
        assert row["rewards"] == pytest.approx(json.loads(line)["rewards"], abs=1e-6)
    again = rmtrain("score", work / "test.jsonl", "--output", out, "--ckpt", trained["run"], code=2)
    assert "exists" in again.stderr


def test_score_takes_pairs_and_names_a_bad_line(trained: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"prompt": "w1 w2", "chosen": "w3", "rejected": "w50 w51"}\n')
    rmtrain("score", source, "--output", tmp_path / "out.jsonl", "--ckpt", trained["run"])
    assert len(json.loads((tmp_path / "out.jsonl").read_text())["rewards"]) == 2
    source.write_text('{"prompt": "w1 w2", "chosen": "w3", "rejected": "w5"}\n{"prompt": "w1"\n')
    done = rmtrain("score", source, "--output", tmp_path / "none.jsonl", "--ckpt", trained["run"], code=2)
    assert "pairs.jsonl:2" in done.stderr
    assert not (tmp_path / "none.jsonl").exists()


def test_rewardbench_on_local_rows_reports_partial_data_as_partial(trained: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {
            "id": index,
            "subset": "llmbar-natural" if index % 2 else "hep-rust",
            "prompt": f"w{index}",
            "chosen": "w1 w2",
            "rejected": "w40 w41",
            "chosen_model": "a",
            "rejected_model": "b",
        }
        for index in range(20)
    ]
    source = tmp_path / "bench.jsonl"
    write_lines(source, rows)
    result = answer(rmtrain("rewardbench", "--ckpt", trained["run"], "--data", source, "--json"))
    assert result["n"] == 20
    assert set(result["subsets"]) == {"llmbar-natural", "hep-rust"}
    assert all(section is None for section in result["sections"].values())
    assert "alpacaeval-easy" in result["missing_subsets"]
    assert {"current", "2024-04", "2024-03", "subset_mean", "micro_accuracy"} <= set(result["scores"])
    before = read_lines(result["rows"])
    spread = ["--num-processes", "3", "--tokens-per-batch", "60"]
    again = answer(started("rewardbench", "--ckpt", trained["run"], "--data", source, *spread, "--json"))
    assert again["scores"] == result["scores"]
    after = read_lines(again["rows"])
    assert [row["id"] for row in after] == [row["id"] for row in before] != []
    for one, three in zip(before, after, strict=True):
        assert three["rewards"] == pytest.approx(one["rewards"], abs=1e-6)


def test_compare_a_run_with_itself_finds_no_difference(trained: dict[str, Any]) -> None:
    rows = Path(trained["run"]) / "eval/test.rows.jsonl"
    result = answer(rmtrain("compare", rows, rows, "--json"))
    assert result["difference"] == 0
    assert result["mcnemar_p"] == 1
    assert result["low"] <= 0 <= result["high"]


def test_an_interrupted_run_resumes_to_the_same_weights(work: Path, trained: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    arguments = ["train", work / "tiny.yaml", f"run.folder={work / 'stopped'}"]
    command = [sys.executable, "-m", "rmtrain", *map(str, arguments)]
    with warm.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 5/"):
                process.terminate()
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    assert "a checkpoint is written" in rest
    run = next((work / "stopped").iterdir())
    assert json.loads((run / "manifest.json").read_text())["state"] == "interrupted"
    resumed = answer(rmtrain("train", "--resume", run, "--json"))
    whole = load_file(Path(trained["run"]) / "final/adapter_model.safetensors")
    parts = load_file(Path(resumed["run"]) / "final/adapter_model.safetensors")
    assert all((whole[name] == parts[name]).all() for name in whole)
    assert resumed["train_loss"] == pytest.approx(trained["train_loss"], rel=1e-9)
    assert resumed["tokens"] == trained["tokens"]


def test_two_processes_train_to_the_losses_of_one(work: Path, trained: dict[str, Any]) -> None:
    done = started("train", work / "tiny.yaml", f"run.folder={work / 'two'}", "--num-processes", "2", "--json")
    two = answer(done)
    assert two["train_loss"] == pytest.approx(trained["train_loss"], abs=1e-6)
    assert two["splits"]["test"]["accuracy"] == pytest.approx(trained["splits"]["test"]["accuracy"], abs=0.01)
    assert len(list((work / "two").iterdir())) == 1


def test_offline_wandb_is_one_run_without_secrets_and_says_how_to_sync(work: Path, trained: dict[str, Any]) -> None:
    terms = ("loss.sum_to_zero=0", "loss.length_decorrelation=0")
    norm_bt = ("loss.objective=norm_bt", *terms, "lora.dropout=0")  # its moving average is of both processes
    secrets = {"HF_TOKEN": "hf_kept_secret_1", "AWS_SECRET_ACCESS_KEY": "kept_secret_2"}
    done = started(
        "train",
        work / "tiny.yaml",
        "tracking.wandb=offline",
        "optim.max_steps=3",
        "evaluation.splits=[]",
        *norm_bt,
        "--num-processes",
        "2",
        **secrets,
        WANDB_MODE="offline",
        WANDB_API_KEY="0123456789abcdef0123456789abcdef01234567",
    )
    line = next(line for line in done.stdout.splitlines() if "wandb sync" in line)
    record = Path(line.split()[-1])
    run = record.parents[1]
    assert record.name.endswith(f"-{run.name}")  # under the run's own name
    assert list(run.glob("wandb/offline-run-*")) == [record]
    assert list(run.glob("wandb/run-*")) == []
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in (*secrets.values(), "0123456789abcdef0123")), path
    one = rmtrain("train", work / "tiny.yaml", "optim.max_steps=3", "evaluation.splits=[]", *norm_bt, "--json")
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for folder in (Path(answer(one)["run"]), run)
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert f"wandb sync {record}" in rmtrain("runs", "show", run).stdout.replace("\n", "")


def test_wrong_input_starts_nothing(work: Path, tmp_path: Path) -> None:
    runs = f"run.folder={tmp_path / 'runs'}"
    for arguments, said in {
        ("train", str(work / "tiny.yaml"), runs, "optim.learning_rat=1"): "did you mean learning_rate",
        ("train", str(tmp_path / "none.yaml")): "no such recipe file",
        ("train", str(work / "tiny.yaml"), runs, "model.name=nowhere/such-model"): "nowhere/such-model",
        ("train", str(work / "tiny.yaml"), runs, "data.source.train=missing.jsonl"): "missing.jsonl",
        ("train", str(work / "tiny.yaml"), runs, "lora.targets=[nothing_like_it]"): "lora.targets",
        ("train", "--resume", str(tmp_path)): "not a run folder",
        ("eval", "--runs", str(tmp_path / "runs")): "no finished run",
        ("eval", "--ckpt", str(tmp_path / "missing")): "no such folder",
        ("eval", "--ckpt", str(work / "base"), "--data", str(work / "test.jsonl")): "score head",
        ("nothing",): "No such command",
    }.items():
        done = rmtrain(*arguments, code=2)
        assert said in done.stderr, (arguments, done.stderr)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_training_from_the_hub_pins_the_commits(work: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").write_text((work / f"{split}.jsonl").read_text())
    repos = {("dataset", "org/pairs"): data, ("model", "org/tiny"): work / "base"}
    with (
        HubServer(repos) as hub,
        Session({**hub.environment(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "0"}) as session,
    ):
        done = checked(
            session.run(
                *("train", work / "tiny.yaml", "model.name=org/tiny", "data.source=org/pairs", "optim.max_steps=2"),
                "data.splits={train: train, validation: validation, test: test}",
                *(f"run.folder={tmp_path / 'runs'}", "--json"),
            )
        )
        manifest = json.loads((Path(answer(done)["run"]) / "manifest.json").read_text())
        assert manifest["data"]["train"]["revision"] == hub.commit(("dataset", "org/pairs"))
        assert manifest["model"]["commit"] == hub.commit(("model", "org/tiny"))
        checked(session.run("eval", "--ckpt", answer(done)["run"], "--split", "test"))

        hub.repos["model", "org/adapter"] = Path(answer(done)["run"]) / "final"
        further = (
            *("train", work / "tiny.yaml", "model.name=org/adapter", "optim.max_steps=2", "--json"),
            f"run.folder={tmp_path / 'further'}",
        )
        checked(session.run(*further, "--dry-run"))
        again = checked(session.run(*further))
        assert "an adapter on org/tiny, which is trained further" in again.stderr
        run = Path(answer(again)["run"])
        pinned = {"name": "org/tiny", "commit": hub.commit(("model", "org/tiny"))}
        assert json.loads((run / "manifest.json").read_text())["model"] == pinned
        named = json.loads((run / "final" / "adapter_config.json").read_text())
        assert (named["base_model_name_or_path"], named["revision"]) == tuple(pinned.values())
        asked = [request for request in hub.requests if "org/adapter/resolve" in request]
        assert any(hub.commit(("model", "org/adapter")) in request for request in asked)


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys, rmtrain.cli.app as a; a.run(['--help']); print([m for m in sys.modules if m in ('torch','trl')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
