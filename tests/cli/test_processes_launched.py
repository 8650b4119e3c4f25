"""Processes that rmtrain or another launcher has started: how they end, and that none is left."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import warm
from conftest import make_tokenizer, read_lines, save_reward_model, write_pairs

from rmtrain.cli import processes
from rmtrain.errors import InputError, RunFailedError
from rmtrain.runs import read_manifest

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {{name: {base}, dtype: float32}}
lora: {{rank: 4, alpha: 8}}
data:
  source: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
  splits: {{train: train, test: train}}
  max_length: 64
optim: {{learning_rate: 1.0e-4, epochs: {epochs}, global_batch_size: 4, tokens_per_microbatch: 400}}
evaluation: {{every: 0, select: last, splits: [{splits}]}}
run: {{folder: {folder}/runs, save_every: 0}}
"""


def write_recipe(folder: Path, base: Path, epochs: int, splits: str = "") -> Path:
    write_pairs(folder / "train.jsonl", 40)
    write_pairs(folder / "test.jsonl", 8, seed=1)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(base=base, folder=folder, epochs=epochs, splits=splits))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "rmtrain", *map(str, arguments)]


# How a launch ends


def failure(code: int, seconds: int = 0) -> Any:
    name = signal.Signals(-code).name if code < 0 else ""
    return SimpleNamespace(exitcode=code, pid=0, timestamp=1000 + seconds, signal_name=lambda: name)


@pytest.mark.parametrize(
    ("reported", "failures", "expected"),
    [
        ({0: 0, 1: 0}, {}, 0),
        ({0: 0, 1: 1}, {1: failure(1)}, 1),
        ({0: 1, 1: 0}, {0: failure(1)}, 1),
        ({1: 2, 0: 2}, {0: failure(2), 1: failure(2)}, 2),
        ({0: 130, 1: 130}, {0: failure(130)}, 130),
        ({1: 1, 0: 130}, {1: failure(1), 0: failure(130)}, 1),  # the first to end made torchrun end the other
        ({0: 2}, {0: failure(2), 1: failure(-signal.SIGTERM)}, 2),  # it had not begun when torchrun ended it
        ({0: 1}, {0: failure(1), 1: failure(-signal.SIGKILL, 30)}, 1),  # it did not end when torchrun asked it to
        ({0: 0}, {}, "a worker exited without reporting an error"),
        ({0: 0}, {1: failure(-signal.SIGKILL)}, "process 1 was ended by SIGKILL (signal 9)"),
        ({0: 1}, {0: failure(1), 1: failure(-signal.SIGKILL)}, "process 1 was ended by SIGKILL (signal 9)"),
        ({0: 1}, {0: failure(-signal.SIGTERM), 1: failure(-signal.SIGKILL)}, "process 1 was ended by SIGKILL"),
        ({0: 130}, {0: failure(130, 1), 1: failure(-signal.SIGSEGV)}, "process 1 was ended by SIGSEGV (signal 11)"),
        ({}, {0: failure(-signal.SIGTERM)}, "process 0 was ended by SIGTERM (signal 15)"),
    ],
)
def test_a_launch_ends_as_the_process_that_failed_first(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reported: dict[int, int],
    failures: dict[int, Any],
    expected: int | str,
) -> None:
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def torchrun(arguments: list[str]) -> None:
        for rank, code in reported.items():
            monkeypatch.setenv("RANK", str(rank))
            processes.report_exit(code)
        monkeypatch.delenv("RANK", raising=False)
        if failures:
            error = ChildFailedError.__new__(ChildFailedError)
            error.failures = failures
            raise error

    monkeypatch.setattr(torch.distributed.run, "main", torchrun)
    if isinstance(expected, int):
        assert processes.launch(2) == expected
    else:
        with pytest.raises(RunFailedError, match=re.escape(expected)):
            processes.launch(2)
    assert not processes.is_child()
    assert capsys.readouterr().err == "starting 2 processes\n"


def test_a_child_that_outlived_its_launcher_ends_at_once() -> None:
    done = subprocess.run(command("--version"), env=os.environ | {"RMTRAIN_LAUNCHER": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("variable", "ends"),
    [("TORCHELASTIC_RUN_ID", True), ("CROSS_RANK", True), ("ACCELERATE_DYNAMO_BACKEND", True), ("RANK", False)],
)
def test_a_process_ends_with_its_launcher_but_not_with_a_shell(tmp_path: Path, variable: str, ends: bool) -> None:
    """Started as torchrun, DeepSpeed, accelerate or somebody who sets RANK does; a recipe that never comes holds it."""
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    script = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *command("train", recipe)],
        env=os.environ | {variable: "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        with open(recipe, "wb"):  # opens when the child has opened its end
            parent.kill()
            parent.wait()
            gone, alive = psutil.wait_procs([child], timeout=5 if ends else 0.5)
            for process in alive:
                process.kill()
    assert bool(gone) is ends


def test_a_run_whose_processes_could_not_record_their_end_is_marked_as_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def run_of(name: str, state: str, pid: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "state": state, "error": None}))
        (folder / ".lock").write_text(f"process {pid} on {socket.gethostname()}")
        return folder

    runs = [run_of("dead", "running", 11), run_of("resumed", "running", 9)]  # the first had a process of the same id

    def torchrun(arguments: list[str]) -> None:
        runs.extend([run_of("own", "running", 11), run_of("other", "running", 12), run_of("ended", "finished", 11)])
        (runs[1] / ".lock").write_text(f"process 11 on {socket.gethostname()}")
        error = ChildFailedError.__new__(ChildFailedError)
        killed, waiting = failure(-signal.SIGKILL), failure(-signal.SIGKILL, 30)
        killed.pid, waiting.pid = 10, 11
        error.failures = {1: killed, 0: waiting}
        raise error

    monkeypatch.setattr(torch.distributed.run, "main", torchrun)
    with pytest.raises(RunFailedError, match="process 1 was ended by SIGKILL"):
        processes.launch(2, tmp_path)
    message = "process 1 was ended by SIGKILL (signal 9)"
    states = [(manifest["state"], manifest["error"]) for manifest in map(read_manifest, runs)]
    failed, running = ("failed", message), ("running", None)
    assert states == [running, failed, failed, running, ("finished", None)]


def test_a_dry_run_predicts_for_more_gpus_than_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes.processes_wanted(8, here=False) == 8
    assert processes.processes_wanted(None) == 4
    with pytest.raises(InputError, match="this machine has 4 GPUs"):
        processes.processes_wanted(8)
    with pytest.raises(InputError, match="at least 1"):
        processes.processes_wanted(0, here=False)


def test_children_take_the_run_that_the_command_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMTRAIN_NEWEST_RUN", "")  # put back afterwards
    assert processes.handed_down("NEWEST_RUN", lambda: "first") == "first"
    monkeypatch.setenv("RMTRAIN_STATUS", "status")
    assert processes.handed_down("NEWEST_RUN", lambda: "another that has finished meanwhile") == "first"


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    return warm.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def in_its_steps(launcher: "subprocess.Popen[str]") -> dict[int, psutil.Process]:
    """The processes of a launch by rank, once it trains."""
    assert launcher.stderr is not None
    told = []
    for line in launcher.stderr:
        told.append(line)
        if line.startswith("step "):
            found = psutil.Process(launcher.pid).children(recursive=True)
            assert len(found) == 2
            return dict(enumerate(sorted(found, key=psutil.Process.create_time)))  # torchrun starts them in this order
    raise AssertionError("".join(told))


def ending(launcher: "subprocess.Popen[str]", ranks: dict[int, psutil.Process], seconds: float) -> str:
    """What is said on standard error from here on; all processes have ended in time."""
    try:
        _, told = launcher.communicate(timeout=seconds)
    finally:
        _, alive = psutil.wait_procs(list(ranks.values()), timeout=5)
        for process in alive:
            process.kill()
    assert not alive
    return told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_signals_stop_all_processes_and_none_is_left_whichever_is_killed(base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, epochs=500)
    with start("train", recipe, "--num-processes", "2") as launcher:
        ranks = in_its_steps(launcher)
        launcher.terminate()
        told = ending(launcher, ranks, 60)
    assert launcher.returncode == 130, told
    assert told.count("interrupted: stopped at step") == 1
    assert "error" not in told
    (run,) = (tmp_path / "runs").iterdir()
    again = ("train", "--resume", run, "--num-processes", "2")

    def steps() -> list[int]:
        manifest = read_manifest(run)
        assert manifest["state"] == "interrupted"
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in (run / "checkpoints").glob("check*"))

    first = steps()
    assert first
    with start(*again) as launcher:
        ranks = in_its_steps(launcher)
        launcher.send_signal(signal.SIGUSR1)
        told = ending(launcher, ranks, 60)
    assert launcher.returncode == 130, told
    assert steps()[-1] > first[-1]

    with start(*again) as launcher:
        ranks = in_its_steps(launcher)
        ranks[1].kill()
        told = ending(launcher, ranks, 60)
    assert launcher.returncode == 1, told
    assert "error: process 1 was ended by SIGKILL (signal 9)" in told
    manifest = read_manifest(run)
    assert (manifest["state"], manifest["error"]) == ("failed", "process 1 was ended by SIGKILL (signal 9)")

    with start(*again) as launcher:
        ranks = in_its_steps(launcher)
        launcher.kill()
        ending(launcher, ranks, 5)


@pytest.mark.slow
def test_a_signal_at_any_time_of_train_leaves_a_run_to_go_on_with(base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, epochs=1, splits="test")
    done = warm.run(
        [sys.executable, __file__, str(recipe), str(tmp_path / "runs")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "loading": [130, "interrupted", 0],
        "last step": [130, "interrupted", 10],
        "scoring": [130, "interrupted", 10],
        "nothing": [0, "finished", 10],
    }, done.stderr
    assert "error" not in done.stderr
    assert done.stderr.count("resuming from checkpoint-10") == 2


def _main(recipe: str, runs: Path) -> None:
    """The same run again and again, with a signal at another time."""
    from rmtrain.cli.app import run
    from rmtrain.evaluation import splits
    from rmtrain.training import train
    from rmtrain.training.callbacks import GracefulStop

    def signalled(owner: Any, name: str, number: int) -> Callable[[], None]:
        before = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            os.kill(os.getpid(), number)
            return before(*arguments, **named)

        setattr(owner, name, call)
        return lambda: setattr(owner, name, before)

    found = {}
    for when, place in {
        "loading": (train, "build_model", signal.SIGTERM),
        "last step": (GracefulStop, "on_train_end", signal.SIGUSR1),
        "scoring": (splits, "evaluate_split", signal.SIGTERM),
        "nothing": None,
    }.items():
        restore = signalled(*place) if place else lambda: None
        folders = [str(folder) for folder in runs.glob("*")]
        code = run(["train", *(["--resume", *folders] if folders else [recipe])])
        restore()
        (folder,) = runs.glob("*")
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        found[when] = [code, read_manifest(folder)["state"], len(lines)]
    print(json.dumps(found))


# Other launchers


@pytest.fixture(scope="module")
def scored(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward model, rows, and what one process scores them with."""
    from rmtrain.data.render import Renderer
    from rmtrain.model.reward_model import BackboneOptions, load_backbone
    from rmtrain.recipe.schema import Recipe

    folder = tmp_path_factory.mktemp("scored")
    renderer = Renderer.for_tokenizer(make_tokenizer())
    model = load_backbone(str(base), None, BackboneOptions("float32"), renderer.pad_id, seed=0)
    recipe = Recipe.model_validate({"model": {"name": str(base), "dtype": "float32"}, "data": {"source": "demo"}})
    save_reward_model(model.module, renderer, folder / "rm", {"recipe": recipe.model_dump(mode="json")})
    write_pairs(folder / "pairs.jsonl", 11)
    warm.run(command(*score(folder, "one")), check=True, timeout=200, capture_output=True)
    return folder


def score(folder: Path, output: str) -> list[str]:
    files = [str(folder / "pairs.jsonl"), "--output", str(folder / f"{output}.jsonl"), "--ckpt", str(folder / "rm")]
    return ["score", *files, "--tokens-per-batch", "150"]


def launcher(name: str) -> list[str]:
    """The command that starts two processes of a module, up to the module's name."""
    scripts = Path(sys.executable).parent
    if name == "torchrun":
        return [sys.executable, str(scripts / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m"]
    if name == "accelerate":
        options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        # its --cpu leaves the starting to mpirun; without a GPU these are two processes on the CPU
        return [sys.executable, str(scripts / "accelerate"), "launch", *options, "-m"]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    port = ["--master_port", str(20_000 + os.getpid() % 10_000)]
    return [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", *port, "--module"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun", "accelerate", "deepspeed"])
def test_processes_of_another_launcher_join_and_score_what_one_does(scored: Path, name: str) -> None:
    arguments = [*launcher(name), "rmtrain", *score(scored, name)]
    done = warm.run(arguments, timeout=200, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("11 rows scored") == 1
    assert "starting" not in done.stderr
    ours, theirs = (read_lines(scored / f"{file}.jsonl") for file in (name, "one"))
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    for mine, one in zip(ours, theirs, strict=True):
        assert mine["rewards"] == pytest.approx(one["rewards"], abs=1e-6)


@pytest.mark.slow
def test_a_missed_accuracy_fails_on_several_processes_too_and_leaves_no_files(scored: Path, tmp_path: Path) -> None:
    options = ["--ckpt", scored / "rm", "--data", scored / "pairs.jsonl", "--min-accuracy", "0.999"]
    done = warm.run(
        command("eval", *options, "--num-processes", "2"),
        cwd=scored,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        timeout=200,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("below --min-accuracy") == 1
    assert done.stderr.count("starting 2 processes") == 1
    assert not [*tmp_path.glob("torchelastic*")]


# Slurm


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (137, False), (130, True)])
def test_slurm_requeues_what_was_interrupted_and_nothing_else(tmp_path: Path, code: int, requeued: bool) -> None:
    log, fakes = tmp_path / "log", tmp_path / "bin"
    fakes.mkdir()
    for name, script in {"srun": f'echo "srun $*" >> {log}; exit {code}', "scontrol": f'echo "$0 $*" >> {log}'}.items():
        (fakes / name).write_text(f"#!/bin/sh\n{script}\n")
        (fakes / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{fakes}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}

    def submit() -> list[str]:
        log.unlink(missing_ok=True)
        job = ["bash", str(ROOT / "scripts/slurm.sbatch"), "recipe.yaml", "optim.epochs=2"]
        assert subprocess.run(job, cwd=tmp_path, env=environment, check=False).returncode == code
        return log.read_text().splitlines()

    told = submit()
    assert "--wait=120 rmtrain train recipe.yaml run.folder=runs/slurm-4711 optim.epochs=2" in told[0]
    assert told[1:] == ([f"{fakes}/scontrol requeue 4711"] if requeued else [])
    run = tmp_path / "runs/slurm-4711/tiny-20260101-000000-abcd"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    assert "rmtrain train --resume runs/slurm-4711/tiny-20260101-000000-abcd optim.epochs=2" in submit()[0]


# What lies in the current folder is not run

DECOYS = ("yaml", "json", "typing", "torch", "numpy", "transformers", "sitecustomize", "usercustomize", "rmtrain")
LAUNCHES = {  # with the decoys that Python itself takes before any code of rmtrain runs
    "console": ([str(Path(sys.executable).parent / "rmtrain")], ()),
    "module": (["-m", "rmtrain"], ("rmtrain",)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("console", 2), ("module", 1)])
def test_modules_in_the_current_folder_are_not_run(scored: Path, tmp_path: Path, name: str, processes: int) -> None:
    start, left_out = LAUNCHES[name]
    for decoy in set(DECOYS) - set(left_out):
        (tmp_path / f"{decoy}.py").write_text(f"open({str(tmp_path / decoy)!r} + '.ran', 'w')", encoding="utf-8")
    write_pairs(tmp_path / "rows.jsonl", 4)
    number = ["--num-processes", str(processes)]
    score = ["score", "--ckpt", str(scored / "rm"), "rows.jsonl", "--output", "out.jsonl", *number]
    done = subprocess.run(
        [sys.executable, *start, *score], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*.ran")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "processes"), [("train", 2), ("eval", 1)])
def test_modules_in_the_current_folder_are_not_run_by_other_commands(
    scored: Path, base: Path, tmp_path: Path, verb: str, processes: int
) -> None:
    recipe = write_recipe(tmp_path, base, epochs=1)
    for decoy in DECOYS:
        (tmp_path / f"{decoy}.py").write_text(f"open({str(tmp_path / decoy)!r} + '.ran', 'w')", encoding="utf-8")
    arguments = {
        "train": ["train", str(recipe), "optim.max_steps=1"],
        "eval": ["eval", "--ckpt", str(scored / "rm"), "--data", "test.jsonl"],
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rmtrain", *arguments[verb], "--num-processes", str(processes)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*.ran")] == []


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
