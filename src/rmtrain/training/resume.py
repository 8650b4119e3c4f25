"""The checkpoint from which a run is resumed, and the check that recipe, data and base are still the same."""

import hashlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pydantic_core import to_jsonable_python

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.display import Display
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.devices import is_out_of_memory
from rmtrain.model.dropout import has_dropout
from rmtrain.model.reward_model import load_config
from rmtrain.model.start import find_start
from rmtrain.model.weights import weight_files
from rmtrain.recipe.schema import Recipe
from rmtrain.training.checkpointing import newest_valid
from rmtrain.training.strategies import read_deepspeed_config

# Settings that change neither what is learnt nor which checkpoint is the best: a global batch's loss is the mean over
# its groups, however it is split into micro-batches.
FREE = {
    "optim": ("tokens_per_microbatch", "microbatch_size", "gradient_checkpointing", "activation_offloading"),
    "tracking": ("log_every", "wandb", "wandb_project"),
    "run": ("folder", "name", "keep_checkpoints", "save_every"),
    "evaluation": ("splits", "tokens_per_batch"),
    "distributed": ("timeout_minutes", "deepspeed_config"),
}
_DROPOUT = "dropout of the base (model.dropout)"
_BELOW = "weights below the adapter that the run starts from"
_PIECES, _PIECE = 64, 1 << 16  # pieces that are read of a file, and their bytes: 4 MiB of any file


_STATE = {  # the files, by the Trainer's method that reads them
    "_load_optimizer_and_scheduler": ("optimizer.*", "scheduler.pt"),
    "_load_rng_state": ("rng_state*.pth",),
    "_load_scaler": ("scaler.pt",),
}


class ResumePoint(NamedTuple):
    """The checkpoint from which a run is resumed."""

    checkpoint: Path
    totals: dict[str, float]  # the trainer's figures up to the checkpoint
    averages: dict[str, float]  # the objective's
    changed: dict[str, tuple[Any, Any]]  # by key: the checkpoint's value and the run's own


def run_fingerprint(
    recipe: Recipe, splits: Mapping[str, ReadySplit], renderer: Renderer, strategy: str, processes: int
) -> dict[str, Any]:
    """What must be equal for a resumed run to end as the uninterrupted one would, by dotted key."""
    values = recipe.model_dump(mode="json")
    settings = {f"{section}.{key}": value for section, part in values.items() for key, value in (part or {}).items()}
    settings["distributed.strategy"] = "ddp" if strategy == "none" else strategy  # their checkpoints are alike
    data = {f"rows of {name}": split.fingerprint for name, split in splits.items() if name != "test"}
    path, start = recipe.distributed.deepspeed_config, find_start(recipe.model)
    base = start.adapter or Path(start.name)
    files: dict[str, Any] = {"weights of the base": sampled_digest(base)} if base.is_dir() else {}
    if start.adapter and Path(start.name).is_dir():
        files[_BELOW] = sampled_digest(Path(start.name))
    if path is not None:
        files["content of distributed.deepspeed_config"] = read_deepspeed_config(Path(path))
    free = {f"{section}.{key}" for section, keys in FREE.items() for key in keys}
    bound = {key: value for key, value in settings.items() if key not in free}
    dropped = bound.pop("model.dropout")
    if has_dropout(load_config(start.name, start.revision)):
        files[_DROPOUT] = "on" if dropped else "off"
    return {**bound, **data, **files, "rendering": renderer.contract(), "processes": processes}


def sampled_digest(folder: Path) -> str:
    """Digest of a folder's configs and weights: of each file its size, and pieces of it spread from end to end."""
    digest = hashlib.sha256()
    for path in sorted([*weight_files(folder), *folder.glob("*config.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as stream:
            for place in range(_PIECES):
                stream.seek(max(0, size - _PIECE) * place // (_PIECES - 1))
                digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def choose_checkpoint(
    folder: Path, fingerprint: dict[str, Any], display: Display, allow_changes: bool
) -> ResumePoint | None:
    """The newest valid checkpoint of a run; None, with a note to the user, if it has none.

    Raises:
        InputError: the checkpoint is of another recipe or other data; names every difference. Or its optimiser state
            can't be read here, whatever is allowed.
    """
    checkpoint, manifest, passed_over = newest_valid(folder / "checkpoints")
    for _, reason in passed_over:
        display.note(f"skipped a checkpoint: {reason}")
    if checkpoint is None:
        display.note("no valid checkpoint: starting at step 0")
        return None
    before = _with_defaults(manifest["fingerprint"], fingerprint)
    if _DROPOUT in fingerprint:
        before.setdefault(_DROPOUT, "on")  # earlier versions left it as it was
    if _BELOW in fingerprint:
        before.setdefault(_BELOW, fingerprint[_BELOW])  # earlier versions did not record it
    _require_readable(checkpoint, before, fingerprint)
    changed = {
        key: (before.get(key), fingerprint.get(key))
        for key in sorted({*before, *fingerprint} - {"processes"})
        if before.get(key) != fingerprint.get(key)
    }
    differences = [f"{key}: {then!r} in the checkpoint, {now!r} now" for key, (then, now) in changed.items()]
    if differences and not allow_changes:
        raise InputError(
            f"{folder}: this is not the run that was stopped:\n  " + "\n  ".join(differences),
            "resume with the recipe and data it began with, or add --allow-changes",
        )
    for difference in differences:
        display.note(f"changed: {difference}")
    if before["processes"] != fingerprint["processes"]:
        display.note(
            f"changed: {before['processes']} processes in the checkpoint, {fingerprint['processes']} now; random "
            "states are not restored, so dropout draws other masks"
        )
    display.note(f"resuming from {checkpoint.name}")
    return ResumePoint(checkpoint, manifest["totals"], manifest.get("averages", {}), changed)


def _with_defaults(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's fingerprint; recipe keys that its version did not have yet get their defaults."""
    present, filled = {key.partition(".")[0] for key in before}, dict(before)
    for section, field in Recipe.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields")]
        for key, setting in (kinds[0].model_fields if section in present else {}).items():
            if f"{section}.{key}" in now and not setting.is_required():
                default = to_jsonable_python(setting.get_default(call_default_factory=True))
                filled.setdefault(f"{section}.{key}", default)
    return filled


def _require_readable(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse optimiser state that can't be loaded, or that would be ignored silently."""
    key = "distributed.strategy"
    count = before["processes"]
    if before[key] != now[key]:
        raise InputError(
            f"{checkpoint}: {now[key]} can't read the optimiser state that {before[key]} wrote",
            f"resume with {key}={before[key]} on {count} process{'es' if count > 1 else ''}",
        )
    if now[key] in ("zero2", "zero3") and count != now["processes"]:
        raise InputError(
            f"{checkpoint}: {now[key]} checkpoints resume only on the same number of processes: {count}, but this run "
            f"has {now['processes']}",
            f"resume on as many processes (--num-processes {count})",
        )
    key = "optim.optimizer"
    if before[key].removeprefix("paged_") != now[key].removeprefix("paged_"):
        raise InputError(
            f"{checkpoint}: {now[key]} can't read the optimiser state that {before[key]} wrote",
            f"resume with {key}={before[key]}",
        )
    key = "optim.head_learning_rate"
    if (before[key] is None) != (now[key] is None):
        then = "null" if before[key] is None else before[key]
        raise InputError(
            f"{checkpoint}: {key} was {then}; the score head has an optimiser state of its own only if it has its own "
            "learning rate",
            f"resume with {key}={then}" if before[key] is None else f"resume with a number as {key}",
        )


def damaged_state(error: Exception, checkpoint: Path) -> CheckpointError | None:
    """The error to show where a checkpoint's training state can't be read; None for an error of another origin.

    Pickles are read without running their code; torch's own message would advise to run it.
    """
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    readers = [code.co_name for code in frames if "transformers" in Path(code.co_filename).parts]  # the Trainer's own
    patterns = next((patterns for reader, patterns in _STATE.items() if reader in readers), None)
    if patterns is None or is_out_of_memory(error):
        return None
    files = [path for pattern in patterns for path in sorted(checkpoint.glob(pattern))]
    broken = [path for path in files if not _is_readable(path)] if len(files) > 1 else []
    return CheckpointError(
        f"{' or '.join(map(str, broken or files or [checkpoint]))}: damaged, or it holds more than tensors "
        f"({type(error).__name__}); none of its code was run",
        "move this checkpoint away: --resume then uses the one before it",
    )


def _is_readable(path: Path) -> bool:
    try:
        return isinstance(torch.load(path, map_location="cpu", weights_only=True), dict)
    except Exception:  # a damaged pickle can fail in any way
        return False
