"""A checkpoint exported, with the proof: sample rows scored before merging, after it, and as others will read it."""

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rmtrain.data.load import read_source
from rmtrain.data.tokenize import TokenizedGroup, tokenize_groups
from rmtrain.errors import InputError, RunFailedError
from rmtrain.files import staged_folder, write_json
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.digests import seal
from rmtrain.model.export import merge, stored_bytes, write_model
from rmtrain.model.portable import serve_command
from rmtrain.model.quantization import dequantise, in_float32, is_quantised
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.start import require_one_label
from rmtrain.model.weights import SIDECAR, download, read_object
from rmtrain.places import local_name, without_places
from rmtrain.scoring.batches import score_groups

SAMPLE = "demo"
SAMPLE_GROUPS = 16
_TOKENS_AT_ONCE = 2048

# Largest change of a reward that is let pass, as a share of the sample rewards' standard deviation. Both are of rewards
# less the mean of their prompt: only the gaps between answers to one prompt mean anything.
MERGING = 1e-3  # in float32 it changes the order of sums only
# An int8 base rounds each layer's input as well, which no plain layer does: here only a gross fault can be told.
DEQUANTISING = {"nf4": MERGING, "int8": 0.5}
# Storing rounds each weight, in bfloat16 eight times as coarsely as in float16, and the layers add that up.
STORING = {"float32": MERGING, "float16": 0.03, "bfloat16": 0.25}

Dtype = Literal["float32", "bfloat16", "float16"]


def export(
    where: str,
    output: Path,
    dtype: Dtype | None = None,
    revision: str | None = None,
    verify: bool = True,
    notify: Callable[[str], None] = lambda line: None,
    finish: Callable[[Path, dict[str, Any]], object] = lambda folder, sidecar: None,
) -> dict[str, Any]:
    """Write a checkpoint as a plain sequence-classification folder, if its rewards stay the same.

    The adapters of a quantised base are merged into the weights that the quantised ones stand for: the model that was
    trained, not the one before quantisation. Everything runs on the CPU, beside a quantised base.

    Args:
        where: run's final folder, checkpoint folder or hub id.
        output: the folder to write; it appears whole or not at all.
        dtype: of the stored backbone; None is that of training.
        revision: of a hub id.
        verify: see `load_checkpoint`.
        notify: takes a line for the user.
        finish: adds files to the folder before it gets its name; it is given the content of rmtrain.json too.

    Returns:
        What was exported and how far its rewards moved, as `export --json` gives it.

    Raises:
        InputError: the output is there already, or the model has no such form.
        CheckpointError: the checkpoint is damaged.
        RunFailedError: a reward moved further than allowed, or the disk has no room; nothing is left behind.
    """
    check_output(output)
    checkpoint = _load(where, revision, verify)
    in_float32(checkpoint.model.module)
    sample = _sample(checkpoint)
    notify(f"scoring {sum(len(group.suffixes) for group in sample)} completions of {SAMPLE} data before merging")
    before = _rewards(checkpoint.model, sample, checkpoint.renderer.pad_id)
    spread = float(np.std(before))
    proof: dict[str, Any] = {"data": SAMPLE, "n": len(before), "standard_deviation": spread}
    kind = "none"
    if is_quantised(checkpoint.model.module):
        kind = checkpoint.scoring.quantization
        del checkpoint  # before the next is loaded: they may be large
        gc.collect()
        checkpoint = load_checkpoint(where, revision=revision, through=dequantise, verify=False)
        in_float32(checkpoint.model.module)
        whole = _rewards(checkpoint.model, sample, checkpoint.renderer.pad_id)
        proof |= _moved("dequantising", before, whole, DEQUANTISING[kind] * spread)
        before = whole
    merges = hasattr(checkpoint.model.module, "merge_and_unload")
    model = merge(checkpoint.model)
    merged = _rewards(model, sample, checkpoint.renderer.pad_id)
    proof |= _moved("merging", before, merged, MERGING * spread)
    trained_dtype = _trained_dtype(checkpoint, model)
    stored = dtype or trained_dtype
    _need_room(stored_bytes(model.module, stored), output)
    exported = {"dtype": stored, "trained_dtype": trained_dtype, "merged": merges, "quantization": kind, "proof": proof}
    with staged_folder(output, left="no part of it is left") as staging:
        kept = {key: value for key, value in checkpoint.sidecar.items() if key not in ("format", "contract", "scoring")}
        scoring = checkpoint.scoring.model_copy(
            update={"dtype": stored, "quantization": "none", "max_length": checkpoint.max_length}
        )
        write_model(model.module, checkpoint.renderer, scoring, without_places(kept, local_name), staging)
        del model, checkpoint
        gc.collect()
        notify(f"scoring them with the {stored} folder, read by transformers alone")
        proof |= _moved("storing", merged, _plain(staging, sample), STORING[stored] * spread)
        sidecar = {**read_object(staging / SIDECAR), "exported": exported}
        write_json(staging / SIDECAR, sidecar)
        finish(staging, sidecar)
        seal(staging)
    size = sum(path.stat().st_size for path in output.iterdir())
    return {
        "ckpt": where,
        "output": str(output),
        "bytes": size,
        **exported,
        "serve": serve_command(str(output), stored),
    }


def check_output(output: Path) -> None:
    """Refuse a folder that can't be made, or that holds something.

    Raises:
        InputError: it is such a one.
    """
    if output.exists() and (not output.name or not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists", "choose another --output")
    if not output.resolve().parent.is_dir():
        raise InputError(f"{output.resolve().parent}: no such folder", "make it, or choose another --output")


def _load(where: str, revision: str | None, verify: bool) -> Checkpoint:
    require_one_label(Path(where) if Path(where).is_dir() else download(where, revision))
    checkpoint = load_checkpoint(where, revision=revision, verify=verify)
    if checkpoint.published:
        raise InputError(
            f"{where} was published by others in the layout {checkpoint.published['layout']}",
            "export is for what was trained here and for LoRA adapters; score others as they are",
        )
    return checkpoint


def _sample(checkpoint: Checkpoint) -> list[TokenizedGroup]:
    groups = read_source(SAMPLE, "test", evaluation=True).groups[:SAMPLE_GROUPS]
    tokenized = tokenize_groups(groups, checkpoint.renderer, checkpoint.max_length, "truncate_prompt")
    return [group for group in tokenized if group is not None]


def _rewards(model: RewardModel, sample: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
    return _centred(score_groups(model, sample, pad_id, _TOKENS_AT_ONCE))


def _centred(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Rewards of all groups in a row, less the mean of their group."""
    return [float(reward) for group in rewards for reward in np.subtract(group, np.mean(group))]


@torch.no_grad()
def _plain(folder: Path, sample: Sequence[TokenizedGroup]) -> list[float]:
    """The same as someone without rmtrain gets them: transformers' own class and forward, one sequence at a time."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rewards = [
        group.spread(
            [float(model(input_ids=torch.tensor([[*group.prefix, *suffix]])).logits[0, 0]) for suffix in group.suffixes]
        )
        for group in sample
    ]
    return _centred(rewards)


def _moved(step: str, before: Sequence[float], after: Sequence[float], allowed: float) -> dict[str, float]:
    """Largest change of a centred reward in a step of the export, and what is allowed.

    Raises:
        RunFailedError: it is larger than allowed.
    """
    largest = float(np.max(np.abs(np.subtract(before, after))))
    if not largest <= allowed:  # NaN is refused too
        raise RunFailedError(
            f"{step} moves a sample's reward by {largest:.3g} against its prompt's others, where {allowed:.3g} is "
            "allowed; nothing is written",
            "export with --dtype float32" if step == "storing" else "please report it: this is a bug in rmtrain",
        )
    return {step: largest, f"{step}_allowed": allowed}


def _trained_dtype(checkpoint: Checkpoint, model: RewardModel) -> str:
    found = checkpoint.scoring.dtype or str(model.module.config.dtype).removeprefix("torch.")
    return found if found in STORING else "float32"


def _need_room(needed: int, output: Path) -> None:
    free = shutil.disk_usage(output.resolve().parent).free
    if needed > free:
        raise RunFailedError(
            f"{output}: the export takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there",
            "make room, choose another --output, or a smaller --dtype",
        )
