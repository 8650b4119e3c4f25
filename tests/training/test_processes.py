"""Two processes train what one does, whatever the engine, and end together."""

import json
import os
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
    fork,
    import_all,
    make_renderer,
    make_splits,
    only_run,
    run,
    share_on_cpu,
    wait,
    weights,
)

pytestmark = pytest.mark.slow

STEPS = 6
LORA: dict[str, Any] = {"lora__dropout": 0.0}
FULL: dict[str, Any] = {"lora": None, "optim__learning_rate": 1e-3}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {  # processes, changes; the first of each kind is what others must equal
    "lora one": (1, LORA),
    "lora ddp": (2, LORA),
    "lora ddp padded": (2, LORA | {"model__packing": "none"}),
    "lora fsdp": (2, LORA | {"distributed__strategy": "fsdp", "optim__gradient_checkpointing": "full"}),
    "lora zero2": (2, LORA | {"distributed__strategy": "zero2"}),
    "lora zero2 padded": (2, LORA | {"distributed__strategy": "zero2", "model__packing": "none"}),
    "lora zero3": (2, LORA | {"distributed__strategy": "zero3"}),
    "full one": (1, FULL),
    "full ddp": (2, FULL),
    "full zero2": (2, FULL | {"distributed__strategy": "zero2", "optim__head_learning_rate": 1e-3}),
    "full fsdp": (2, FULL | {"distributed__strategy": "fsdp"}),
    "full zero3": (2, FULL | {"distributed__strategy": "zero3", "optim__head_learning_rate": 1e-3}),
}
RESUMED = [
    "lora ddp",
    "lora ddp padded",
    "full ddp",
    "full zero2",
    "lora fsdp",
    "lora zero2",
    "lora zero3",
    "full fsdp",
    "full zero3",
]
STOPPED = ["ddp", "zero2"]
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
    assert found["checkpoints"] == ["checkpoint-2"]
    again = of(results, f"{name} resumed")
    whole = of(results, name)
    assert again["losses"] == whole["losses"][2:]
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
    assert found["losses"] == of(results, "lora ddp" if name == "ddp" else f"lora {name}")["losses"][:2]


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
        if "fsdp" in name and "refused" not in name:
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
                told.write_text(json.dumps({"lines": display.lines, "tokens": tokens}), encoding="utf-8")

    log, started = folder / f"{name.replace(' ', '-')}.log", time.monotonic()
    codes = wait(fork(processes, work, log), 100)
    heard = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {"lines": [], "tokens": None}
    lines, runs = heard["lines"], list(place.glob("try-*"))
    found: dict[str, Any] = {
        "codes": codes,
        "seconds": time.monotonic() - started,
        "log": "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(folder.glob(f"{log.name}.*"))),
        "losses": [line["loss"] for line in lines if "loss" in line],
        "accuracies": [line["accuracy"] for line in lines if "loss" in line],
        "validation": [x for line in lines if "eval_loss" in line for x in (line["eval_accuracy"], line["eval_loss"])],
        "tokens": heard["tokens"],
        "state": None,
    }
    if runs:
        manifest = json.loads((runs[0] / "manifest.json").read_text(encoding="utf-8"))
        checkpoints = sorted(path.name for path in (runs[0] / "checkpoints").glob("[!.]*"))
        found |= {"state": manifest["state"], "error": manifest["error"], "checkpoints": checkpoints}
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
    for name in RESUMED:
        processes, changes = RUNS[name]
        stopped = f"{name} stopped"
        results[stopped] = _launch(
            folder,
            stopped,
            processes,
            changes,
            lambda: at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), process=1),
        )
        mine = only_run(folder / stopped.replace(" ", "-"))
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
    results["save failed"] = _launch(folder, "save failed", 2, LORA, _fail_in_second_save)
    results["fsdp refused"] = _launch(folder, "fsdp refused", 2, LORA | {"distributed__strategy": "fsdp"})
    if "zero2" in STOPPED:
        alone = LORA | {"distributed__strategy": "zero2", "evaluation__every": 0.0}
        results["zero2 alone"] = _launch(folder, "zero2 alone", 1, alone)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
