"""Processes that fail, hang or are killed end together, say why, and leave a run that goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base
from launches import COMPILER, LORA, STEP, STEPS, import_deepspeed, launch, of, results_of
from training_cases import at_step, fork, import_all, only_run, run, wait

pytestmark = pytest.mark.slow

STOPPED = ["ddp", "zero2", "zero3"] if COMPILER else ["ddp"]
ZERO2 = LORA | {"distributed__strategy": "zero2"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(__file__, tmp_path_factory.mktemp("lost"))


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
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
    assert "step 3: loss or gradient norm is not finite (in groups g" in found["error"]
    assert found["finite"] == [True, True]
    assert found["losses"] == pytest.approx(of(results, "lora one")["losses"][:2], abs=1e-5)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
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
    assert "the disk is full" in found["log"]
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
    assert "the run folder can't be written: the disk is full" in found["log"]
    assert found["state"] is None


# The script


def _poison(place: Path) -> Callable[[], None]:
    """One process's loss of step 3 is not finite; both report whether their weights still are."""

    def prepare() -> None:
        import torch

        from rmtrain.training.trainer import GroupRewardTrainer

        before = GroupRewardTrainer._require_finite
        plain = GroupRewardTrainer._rewards

        def rewards(self: Any, *args: Any) -> Any:
            batch = plain(self, *args)
            spoilt = self.state.global_step == 2 and self.args.process_index == 1
            return replace(batch, rewards=batch.rewards * torch.nan) if spoilt else batch

        def require_finite(self: Any, norm: Any) -> None:
            try:
                before(self, norm)
            except BaseException:
                finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
                (place / f"finite-{self.args.process_index}").write_text(json.dumps(finite), encoding="utf-8")
                raise

        GroupRewardTrainer._rewards = rewards  # type: ignore[method-assign]
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
        found = launch(folder, "full disk", 1, LORA, lambda: at_step(5, fill))
        found["log"] += found["error"] or ""
        mine = only_run(place)
        (place / "other").unlink()
        mount("-o", "remount,size=64m")
        resumed = launch(folder, "full disk resumed", 1, LORA, resume=mine)
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
    resumed = launch(folder, "zero2 kills resumed", 2, changes, resume=only_run(place))
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


def _until(written: Path) -> None:
    while not written.exists():
        time.sleep(0.05)


def _no_room() -> None:
    from rmtrain.training import lifecycle

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    lifecycle.update_manifest = refuse


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
    if COMPILER:
        import_deepspeed()
    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base"), folder / "log")) == [0]
    results = {"lora one": launch(folder, "lora one", 1, LORA)}
    for name in STOPPED:
        place = folder / f"nan-{name}"
        changes = LORA | {"distributed__strategy": name}
        results[f"nan {name}"] = launch(folder, f"nan {name}", 2, changes, _poison(place))
        files = [place / f"finite-{process}" for process in range(2)]
        results[f"nan {name}"]["finite"] = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    results["killed"] = launch(
        folder, "killed", 2, LORA, lambda: at_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL), process=1)
    )
    results["raised"] = launch(folder, "raised", 2, LORA, lambda: at_step(2, _divide, process=1))
    for name in STOPPED[:2]:  # DeepSpeed has a process group of its own
        hung = LORA | {"distributed__timeout_minutes": 0.1, "distributed__strategy": name}
        ended = folder / f"hung-{name}" / "told.json"  # of the other process
        prepare = lambda ended=ended: at_step(2, lambda: _until(ended), process=1)  # noqa: E731
        results[f"hung {name}"] = launch(folder, f"hung {name}", 2, hung, prepare)
    results |= _fill_a_disk(folder)
    results["no room"] = launch(folder, "no room", 2, LORA, _no_room)
    results["save failed"] = launch(folder, "save failed", 2, LORA, _fail_in_second_save)
    if COMPILER:
        results["lora zero2"] = launch(folder, "lora zero2", 2, ZERO2)
        results["overflow"] = launch(folder, "overflow", 2, ZERO2, lambda: _overflow_at(5))
        results |= _kill_twice(folder, ZERO2)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
