"""Launches for the tests: a script imports all once and forks the processes of each, and writes what they found."""

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import warm
from conftest import make_groups
from training_cases import Recorder, fork, make_renderer, make_splits, run, share_on_cpu, wait, weights

STEPS = 6
STEP = 3  # the first that is validated after
LORA: dict[str, Any] = {"lora__dropout": 0.0}
FULL: dict[str, Any] = {"lora": None, "optim__learning_rate": 1e-3}
COMPILER = shutil.which("c++") is not None  # DeepSpeed builds a small extension where there is no GPU


def import_deepspeed() -> None:
    """Import DeepSpeed once for the processes of all launches, without what it builds where there is no GPU.

    That takes a C++ compiler a minute, and only a reduction for inference would use it.
    """
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]


def results_of(script: str, folder: Path) -> dict[str, Any]:
    """What a script found that takes a folder and writes its results.json."""
    done = warm.run(
        [sys.executable, script, str(folder)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
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


def launch(
    folder: Path,
    name: str,
    processes: int,
    changes: dict[str, Any],
    prepare: Callable[[], None] | None = None,
    resume: Path | None = None,
    then: Callable[[Path], None] | None = None,
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
            if then is not None:
                then(result.run)
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
        there = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("there-*/scores.json"))]
        found["scores there"] = [each["scores"] for each in there]
    return found


def score_there(run: Path) -> None:
    """Score other groups in the processes that have trained, as `train` does in the end."""
    there = run.parent / f"there-{os.environ.get('RANK', '0')}"
    there.mkdir(exist_ok=True)
    _score(run / "final", there)


def _score(final: Path, place: Path) -> None:
    """Score other groups with the final model, as any later command would."""
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.scoring.batches import score_groups

    groups = make_splits(place / "cache", make_groups(8, seed=11))["train"].tokens.groups()
    checkpoint = load_checkpoint(str(final))
    rewards = score_groups(checkpoint.model, groups, make_renderer().pad_id, 1000)
    found = {
        "scores": [reward for group in rewards for reward in group],
        "shapes": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in weights(final).items()},
    }
    (place / "scores.json").write_text(json.dumps(found), encoding="utf-8")
