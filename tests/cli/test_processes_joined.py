"""Which processes a command joins, and what it reads off Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from conftest import read_lines

from rmtrain.cli import processes
from rmtrain.cli.processes import first_node, join_slurm, tasks_per_node
from rmtrain.errors import InputError

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_NODELIST": "gpu[003-005],login1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)


def step(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in {**STEP, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def test_a_task_of_a_step_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch)
    join_slurm()
    assert processes.joined()
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}
    assert found == {
        "RANK": "9",
        "WORLD_SIZE": "11",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu003",
    }
    assert 1024 < int(os.environ["MASTER_PORT"]) < 65536


def test_jobs_and_steps_on_one_node_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for job in range(4711, 4731):
        for number in range(3):
            step(monkeypatch, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(number))
            for name in ("RANK", "MASTER_PORT"):
                monkeypatch.delenv(name, raising=False)
            join_slurm()
            ports.add(os.environ["MASTER_PORT"])
    assert len(ports) == 60


@pytest.mark.parametrize("changes", [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": None}])
def test_a_batch_script_or_a_single_task_joins_nothing(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]
) -> None:
    step(monkeypatch, **changes)
    join_slurm()
    assert not processes.joined()


def test_torchrun_within_a_job_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    join_slurm()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "2")


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_NODEID"])
def test_what_slurm_leaves_out_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    step(monkeypatch, **{missing: None})
    with pytest.raises(InputError, match=missing.removeprefix("SLURM_")):
        join_slurm()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-007,9],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("rack[1-2]-gpu", "rack1-gpu"),
        ("a.b-c[12]", "a.b-c12"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_tasks_per_node() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("8") == [8]
    with pytest.raises(ValueError, match="not a list of tasks per node"):
        tasks_per_node("4x2")


@pytest.mark.slow
def test_tasks_of_a_step_score_together(tmp_path: Path, base: Path) -> None:
    """Three processes with srun's variables, and nothing of torchrun's, score each row once."""
    from conftest import make_tokenizer, save_reward_model, write_pairs

    from rmtrain.data.render import Renderer
    from rmtrain.model.reward_model import BackboneOptions, load_backbone

    renderer = Renderer.for_tokenizer(make_tokenizer())
    model = load_backbone(str(base), None, BackboneOptions("float32"), renderer.pad_id, seed=0)
    section = {"dtype": "float32", "quantization": "none", "attention": "auto", "packing": "shared_prompt"}
    save_reward_model(
        model.module, renderer, tmp_path / "rm", {"recipe": {"model": section, "data": {"max_length": 64}}}
    )
    pairs = write_pairs(tmp_path / "pairs.jsonl", 11)

    def command(output: str) -> list[str]:
        files = [str(pairs), "--output", str(tmp_path / output), "--ckpt", str(tmp_path / "rm")]
        return [sys.executable, "-m", "rmtrain", "score", *files, "--tokens-per-batch", "150"]

    def start(rank: int) -> subprocess.Popen[str]:
        variables = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": "3",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "3",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
        }
        return warm.Popen(
            command("three.jsonl"),
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    running = [start(rank) for rank in range(3)]
    told = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    warm.run(command("one.jsonl"), check=True, timeout=200, capture_output=True)
    three, one = (read_lines(tmp_path / f"{name}.jsonl") for name in ("three", "one"))
    assert [row["id"] for row in three] == [row["id"] for row in one]
    for mine, theirs in zip(three, one, strict=True):
        assert mine["rewards"] == pytest.approx(theirs["rewards"], abs=1e-6)
