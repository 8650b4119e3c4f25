"""Two processes train what one does, whatever the engine, and end together."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_groups, write_base
from training_cases import (
    Recorder,
    at_step,
    cut,
    flipped,
    fork,
    import_all,
    make_renderer,
    make_splits,
    missing,
    only_run,
    run,
    share_on_cpu,
    wait,
    weights,
)

from rmtrain.training.checkpoints import MANIFEST, newest_valid

pytestmark = pytest.mark.slow

STEPS = 6
LORA: dict[str, Any] = {"lora__dropout": 0.0}
FULL: dict[str, Any] = {"lora": None, "optim__learning_rate": 1e-3}
ENGINES = ["ddp", "zero2", "zero3", "fsdp"]
RUNS: dict[str, tuple[int, dict[str, Any]]] = {  # processes, changes; the first of each kind is what others must equal
    "lora one": (1, LORA),
    "full one": (1, FULL),
} | {
    f"{kind} {engine}{suffix}": (2, changes | packing | {"distributed__strategy": engine})
    for kind, changes in {"lora": LORA, "full": FULL | {"optim__head_learning_rate": 1e-3}}.items()
    for engine in ENGINES
    for suffix, packing in {"": {}, " padded": {"model__packing": "none"}}.items()
}
RUNS["lora fsdp"][1]["optim__gradient_checkpointing"] = "full"
RUNS["lora zero2 offload"] = (2, RUNS["lora zero2"][1] | {"distributed__offload": "optimizer"})
RESUMED = [f"{kind} {engine}" for kind in ("lora", "full") for engine in ENGINES]
OTHERS = {  # what was stopped is also gone on with by so many processes
    "lora ddp": {1: "one"},
    "lora one": {2: "two"},
    "lora fsdp": {1: "one", 3: "three"},
    "lora zero2": {1: "one"},
}
STOPPED = ["ddp", "zero2", "zero3"]
OWN = {"zero_optimization": {"stage": 1}, "steps_per_print": 2**31 - 1}  # a user's file
STEP = 3  # that a signal comes in: one that is validated after
if shutil.which("c++") is None:  # DeepSpeed builds a small extension where there is no GPU
    RUNS = {name: value for name, value in RUNS.items() if "zero" not in name}
    RESUMED, STOPPED = ([name for name in names if "zero" not in name] for names in (RESUMED, STOPPED))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script below found; it imports once and forks the processes of every launch."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # ninja, for DeepSpeed
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def of(results: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = results[name]
    assert set(found["codes"]) == {0}, found["log"]
    return found


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith(" one")])
def test_every_engine_trains_what_one_process_does(results: dict[str, Any], name: str) -> None:
    found, one = of(results, name), of(results, f"{name.split()[0]} one")
    assert len(one["losses"]) == STEPS
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["accuracies"] == one["accuracies"]
    assert found["validation"] == pytest.approx(one["validation"], abs=1e-5)
    assert found["tokens"] == one["tokens"] or "padded" in name


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith(" one")])
def test_every_engines_model_loads_and_scores_alike(results: dict[str, Any], name: str) -> None:
    found, one = of(results, name), of(results, f"{name.split()[0]} one")
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert found["shapes"] == one["shapes"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_signal_to_one_process_stops_all_at_one_step_and_the_rest_is_made_later(
    results: dict[str, Any], name: str
) -> None:
    found = results[f"{name} stopped"]
    assert found["codes"] == [130, 130], found["log"]
    assert found["state"] == "interrupted"
    assert found["checkpoints"] == [f"checkpoint-{STEP}"]
    assert found["validation"] == []  # the checkpoint comes first
    again = of(results, f"{name} resumed")
    whole = of(results, name)
    assert again["losses"] == whole["losses"][STEP:]
    assert again["validation"] == whole["validation"]
    assert again["scores"] == whole["scores"]


@pytest.mark.parametrize("name", ["lora ddp on one", "lora one on two", "lora fsdp on three"])
def test_a_run_goes_on_with_another_number_of_processes(results: dict[str, Any], name: str) -> None:
    found, whole = of(results, name), of(results, "lora one")
    assert found["losses"] == pytest.approx(whole["losses"][STEP:], abs=1e-5)
    assert found["validation"] == pytest.approx(whole["validation"], abs=1e-5)
    assert found["scores"] == pytest.approx(whole["scores"], abs=1e-5)
    assert any("random states are not carried over" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora fsdp on one", "ddp can't read the optimiser state that fsdp wrote"),
        ("lora zero2 on one", "zero2 cut its optimiser state into one part for each of 2 processes"),
    ],
)
def test_a_number_of_processes_that_the_engine_does_not_take_is_refused(
    results: dict[str, Any], name: str, said: str
) -> None:
    if name not in results:
        pytest.skip("no C++ compiler")
    found = results[name]
    assert found["codes"] == [2], found["log"]
    assert said in found["log"]
    assert found["state"] == "interrupted"  # as it was


@pytest.mark.skipif("zero2" not in STOPPED, reason="no C++ compiler")
def test_a_users_own_deepspeed_file_is_what_the_run_takes(results: dict[str, Any]) -> None:
    found, one = of(results, "own file"), of(results, "lora one")
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert any(note.startswith("strategy zero2") for note in found["notes"])


@pytest.mark.parametrize("damage", [missing, cut, flipped])
@pytest.mark.parametrize("name", ["lora ddp", "lora zero2"])
def test_no_file_of_a_checkpoint_can_be_damaged_unseen(
    results: dict[str, Any], name: str, damage: Callable[[Path], None]
) -> None:
    if name not in results:
        pytest.skip("no C++ compiler")
    folder = Path(of(results, name)["run"]) / "checkpoints"
    newest = newest_valid(folder)
    assert newest.path == folder / f"checkpoint-{STEPS}"
    files = [newest.path / file for file in [*newest.manifest["files"], MANIFEST]]
    assert sorted(files) == sorted(path for path in newest.path.rglob("*") if path.is_file())
    for file in files:
        content = file.read_bytes()
        damage(file)
        found = newest_valid(folder)
        file.write_bytes(content)
        assert found.path == folder / f"checkpoint-{STEP}"
        assert file.name in found.passed_over[0][1]
    assert newest_valid(folder).path == newest.path


@pytest.mark.skipif("zero2" not in STOPPED, reason="no C++ compiler")
def test_two_processes_under_zero_that_are_killed_twice_end_as_if_they_had_not_been(results: dict[str, Any]) -> None:
    assert results["zero2 kills"]["codes"] == [-signal.SIGKILL] * 4
    again, whole = of(results, "zero2 kills resumed"), of(results, "lora zero2")
    assert again["scores"] == whole["scores"]


@pytest.mark.parametrize("name", STOPPED)
def test_a_loss_that_is_not_finite_on_one_process_stops_both_before_the_step(
    results: dict[str, Any], name: str
) -> None:
    found = results[f"nan {name}"]
    assert found["codes"] == [1, 1], found["log"]
    assert found["state"] == "failed"
    assert "step 3: loss or gradient norm is not finite (groups g" in found["error"]
    assert found["finite"] == [True, True]
    assert found["losses"] == of(results, f"lora {name}")["losses"][:2]


@pytest.mark.skipif("zero2" not in STOPPED, reason="no C++ compiler")
def test_gradients_that_overflow_under_deepspeed_stop_before_anything_of_the_step_is_saved(
    results: dict[str, Any],
) -> None:
    found = results["overflow"]
    assert found["codes"] == [1, 1], found["log"]
    assert "step 5: loss or gradient norm is not finite" in found["error"]
    assert "the step was taken by DeepSpeed, and nothing of it is saved" in found["error"]
    assert found["checkpoints"] == [f"checkpoint-{STEP}"]


def test_a_killed_process_ends_the_other_soon_with_an_error(results: dict[str, Any]) -> None:
    found = results["killed"]
    assert found["codes"] == [1, -signal.SIGKILL], found["log"]
    assert found["seconds"] < 60
    assert found["state"] == "failed"


def test_the_process_that_failed_first_is_named(results: dict[str, Any]) -> None:
    found = results["raised"]
    assert found["codes"] == [1, 1], found["log"]
    assert found["seconds"] < 60
    assert found["error"] == "process 1: ZeroDivisionError: by nought"


@pytest.mark.parametrize("name", STOPPED[:2])
def test_a_process_that_hangs_is_given_up_after_the_recipes_time(results: dict[str, Any], name: str) -> None:
    found = results[f"hung {name}"]
    assert found["codes"][0] == 1, found["log"]
    assert found["seconds"] < 60
    assert found["state"] == "failed"


def test_a_full_disk_costs_no_more_than_the_steps_since_the_last_checkpoint(results: dict[str, Any]) -> None:
    found = results["full disk"]
    if not found:
        pytest.skip("no small file system can be mounted here")
    assert found["codes"] == [1], found["log"]
    assert found["checkpoints"] == ["checkpoint-3"]
    assert "No space left on device" in found["log"]
    assert "Traceback" not in found["error"]
    again = of(results, "full disk resumed")
    whole = of(results, "lora one")
    assert again["losses"] == whole["losses"][3:]
    assert again["scores"] == whole["scores"]


def test_a_process_that_fails_in_the_save_leaves_no_checkpoint_of_it(results: dict[str, Any]) -> None:
    found = results["save failed"]
    assert found["codes"] == [1, 1], found["log"]
    assert found["seconds"] < 60
    assert found["checkpoints"] == ["checkpoint-3"]


def test_a_run_folder_that_can_not_be_written_ends_all_processes_with_the_reason(results: dict[str, Any]) -> None:
    found = results["no room"]
    assert found["codes"] == [2, 2], found["log"]
    assert found["seconds"] < 60
    assert "the run folder can't be written: [Errno 28] No space left on device" in found["log"]
    assert found["state"] is None


def test_fsdp_without_accelerators_is_refused(results: dict[str, Any]) -> None:
    found = results["fsdp refused"]
    assert found["codes"] == [2, 2], found["log"]
    assert "distributed.strategy: fsdp needs GPUs" in found["log"]
    assert found["state"] is None  # no run folder is left


@pytest.mark.skipif("zero2" not in STOPPED, reason="no C++ compiler")
def test_zero_runs_on_a_single_process(results: dict[str, Any]) -> None:
    found, one = of(results, "zero2 alone"), of(results, "lora one")
    assert found["losses"] == pytest.approx(one["losses"][: len(found["losses"])], abs=1e-5)


# The script


def _launch(
    folder: Path,
    name: str,
    processes: int,
    changes: dict[str, Any],
    prepare: Callable[[], None] | None = None,
    resume: Path | None = None,
) -> dict[str, Any]:
    place = resume.parent if resume else folder / name.replace(" ", "-")
    place.mkdir(exist_ok=True)
    told = place / "told.json"
    told.unlink(missing_ok=True)

    def work() -> None:
        if "fsdp" in name and "refused" not in name and processes > 1:
            share_on_cpu()
        if prepare is not None:
            prepare()
        display = Recorder()
        try:
            result = run(folder / "base", place, display=display, resume=resume, **changes)
            tokens = result.tokens
        except BaseException:
            tokens = None
            raise
        finally:
            if os.environ.get("RANK", "0") == "0":
                told.write_text(json.dumps(vars(display) | {"tokens": tokens}), encoding="utf-8")

    log, started = folder / f"{name.replace(' ', '-')}.log", time.monotonic()
    codes = wait(fork(processes, work, log), 250)  # a minute of it may go to DeepSpeed's extension, the first time
    nothing: dict[str, Any] = {"lines": [], "notes": [], "tokens": None}
    heard = json.loads(told.read_text(encoding="utf-8")) if told.exists() else nothing
    lines, runs = heard["lines"], list(place.glob("try-*"))
    found: dict[str, Any] = {
        "codes": codes,
        "seconds": time.monotonic() - started,
        "log": "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(folder.glob(f"{log.name}.*"))),
        "losses": [line["loss"] for line in lines if "loss" in line],
        "accuracies": [line["accuracy"] for line in lines if "loss" in line],
        "validation": [x for line in lines if "eval_loss" in line for x in (line["eval_accuracy"], line["eval_loss"])],
        "tokens": heard["tokens"],
        "notes": heard["notes"],
        "state": None,
    }
    if runs:
        manifest = json.loads((runs[0] / "manifest.json").read_text(encoding="utf-8"))
        checkpoints = sorted(path.name for path in (runs[0] / "checkpoints").glob("[!.]*"))
        found |= {"state": manifest["state"], "error": manifest["error"], "checkpoints": checkpoints}
        found["run"] = str(runs[0])
    if set(codes) == {0} and (runs[0] / "final").exists():
        assert wait(fork(1, lambda: _score(runs[0] / "final", place), folder / "score.log")) == [0]
        found |= json.loads((place / "scores.json").read_text(encoding="utf-8"))
    return found


def _score(final: Path, place: Path) -> None:
    """Score other groups with the final model, as any later command would."""
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.scoring.score import score_groups

    groups = make_splits(place / "cache", make_groups(8, seed=11))["train"].tokens.groups()
    checkpoint = load_checkpoint(str(final))
    rewards = score_groups(checkpoint.model, groups, make_renderer().pad_id, 1000)
    found = {
        "scores": [reward for group in rewards for reward in group],
        "shapes": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in weights(final).items()},
    }
    (place / "scores.json").write_text(json.dumps(found), encoding="utf-8")


def _poison(place: Path) -> Callable[[], None]:
    """One process's loss of step 3 is not finite; both report whether their weights still are."""

    def prepare() -> None:
        import torch

        from rmtrain.training.trainer import GroupRewardTrainer

        before = GroupRewardTrainer._require_finite
        spoil = GroupRewardTrainer.compute_loss
        from rmtrain.training import trainer as module

        plain = module.bradley_terry_loss

        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            spoilt = self.state.global_step == 2 and self.args.process_index == 1

            def loss(*values: Any) -> Any:
                made = plain(*values)
                return made._replace(loss=made.loss * torch.nan, per_preference=made.per_preference * torch.nan)

            module.bradley_terry_loss = loss if spoilt else plain
            return spoil(self, *args, **kwargs)

        def require_finite(self: Any, norm: Any) -> None:
            try:
                before(self, norm)
            except BaseException:
                finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
                (place / f"finite-{self.args.process_index}").write_text(json.dumps(finite), encoding="utf-8")
                raise

        GroupRewardTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
        GroupRewardTrainer._require_finite = require_finite  # type: ignore[method-assign]

    return prepare


def _fill_a_disk(folder: Path) -> dict[str, Any]:
    """A run whose file system has room for one checkpoint, and its resume with more room; none if none can be had."""
    place = folder / "full-disk"
    place.mkdir()

    def mount(*options: str) -> bool:
        try:
            return subprocess.run(["mount", *options, place], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    if not mount("-t", "tmpfs", "-o", "size=2m", "none"):
        return {"full disk": None}

    def fill() -> None:
        free = shutil.disk_usage(place).free
        (place / "other").write_bytes(b"x" * (free - 20_000))

    try:
        found = _launch(folder, "full disk", 1, LORA, lambda: at_step(5, fill))
        found["log"] += found["error"] or ""
        mine = only_run(place)
        (place / "other").unlink()
        mount("-o", "remount,size=64m")
        resumed = _launch(folder, "full disk resumed", 1, LORA, resume=mine)
    finally:
        subprocess.run(["umount", place], check=False)
    return {"full disk": found, "full disk resumed": resumed}


def _kill_twice(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Two processes killed somewhere, the second time in the part that was resumed, and then left alone."""
    draw, place, codes = random.Random(1), folder / "zero2-kills", []
    place.mkdir()
    for step in (STEP, STEP + 2):  # while validating or saving, and in the part that was resumed
        mine = next(place.glob("try-*"), None)
        pids = fork(2, lambda mine=mine: run(folder / "base", place, resume=mine, **changes), folder / "kills.log")
        end = time.monotonic() + 60
        while not any(f'"step": {step},' in log.read_text("utf-8") for log in place.glob("try-*/metrics.jsonl")):
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        for pid in draw.sample(pids, 2):
            os.kill(pid, signal.SIGKILL)
        codes += wait(pids)
    resumed = _launch(folder, "zero2 kills resumed", 2, changes, resume=only_run(place))
    return {"zero2 kills": {"codes": codes}, "zero2 kills resumed": resumed}


def _overflow_at(step: int) -> None:
    from rmtrain.training.trainer import GroupRewardTrainer

    before = GroupRewardTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        if self.state.global_step == step - 1:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    GroupRewardTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def _no_room() -> None:
    from rmtrain.training import record

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    record.update_manifest = refuse


def _divide() -> None:
    raise ZeroDivisionError("by nought")


def _fail_in_second_save() -> None:
    from rmtrain.training.trainer import GroupRewardTrainer

    before = GroupRewardTrainer._save_rng_state

    def save(self: Any, folder: str) -> None:
        if self.state.global_step == STEPS and self.args.process_index == 1:
            raise RuntimeError("disk gone")
        before(self, folder)

    GroupRewardTrainer._save_rng_state = save  # type: ignore[method-assign]


def _main(folder: Path) -> None:
    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base"), folder / "log")) == [0]
    results = {name: _launch(folder, name, processes, changes) for name, (processes, changes) in RUNS.items()}
    for name in [*RESUMED, "lora one"]:
        processes, changes = RUNS[name]
        stopped = f"{name} stopped"
        results[stopped] = _launch(
            folder,
            stopped,
            processes,
            changes,
            lambda last=processes - 1: at_step(STEP, lambda: os.kill(os.getpid(), signal.SIGTERM), process=last),
        )
        mine = only_run(folder / stopped.replace(" ", "-"))
        for number, words in OTHERS.get(name, {}).items():
            other = f"{name} on {words}"
            copy = Path(shutil.copytree(mine, folder / other.replace(" ", "-") / mine.name))
            results[other] = _launch(folder, other, number, changes, resume=copy)
        if name != "lora one":
            results[f"{name} resumed"] = _launch(folder, f"{name} resumed", processes, changes, resume=mine)
    for name in STOPPED:
        place = folder / f"nan-{name}"
        changes = LORA | {"distributed__strategy": name}
        results[f"nan {name}"] = _launch(folder, f"nan {name}", 2, changes, _poison(place))
        files = [place / f"finite-{process}" for process in range(2)]
        results[f"nan {name}"]["finite"] = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    results["killed"] = _launch(
        folder, "killed", 2, LORA, lambda: at_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL), process=1)
    )
    results["raised"] = _launch(folder, "raised", 2, LORA, lambda: at_step(2, _divide, process=1))
    for name in STOPPED[:2]:  # DeepSpeed has a process group of its own
        hung = LORA | {"distributed__timeout_minutes": 0.1, "distributed__strategy": name}
        prepare = lambda: at_step(2, lambda: time.sleep(20), process=1)  # noqa: E731
        results[f"hung {name}"] = _launch(folder, f"hung {name}", 2, hung, prepare)
    results |= _fill_a_disk(folder)
    results["no room"] = _launch(folder, "no room", 2, LORA, _no_room)
    results["save failed"] = _launch(folder, "save failed", 2, LORA, _fail_in_second_save)
    results["fsdp refused"] = _launch(folder, "fsdp refused", 2, LORA | {"distributed__strategy": "fsdp"})
    if "zero2" in STOPPED:
        alone = LORA | {"distributed__strategy": "zero2", "evaluation__every": 0.0}
        results["zero2 alone"] = _launch(folder, "zero2 alone", 1, alone)
        zero2 = RUNS["lora zero2"][1]
        results["overflow"] = _launch(folder, "overflow", 2, zero2, lambda: _overflow_at(5))
        (folder / "own.json").write_text(json.dumps(OWN), encoding="utf-8")
        own = LORA | {"distributed__deepspeed_config": str(folder / "own.json")}
        results["own file"] = _launch(folder, "own file", 2, own)
        results |= _kill_twice(folder, zero2)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
