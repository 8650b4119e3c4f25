"""Export with proof: sample rows are scored before merging, after it, and from the written folder with transformers."""

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rmtrain.data.reader import read_source
from rmtrain.data.tokenize import TokenizedGroup, tokenize_groups
from rmtrain.errors import InputError, RunFailedError
from rmtrain.files import staged_folder, write_json
from rmtrain.model.calibration import export_calibration
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.digests import seal
from rmtrain.model.portable import serve_command
from rmtrain.model.quantization import dequantise, in_float32, is_quantised
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saving import merge, stored_bytes, write_model
from rmtrain.model.sidecar import record_in
from rmtrain.model.start import require_one_label
from rmtrain.model.weights import SIDECAR, fetch, local_folder, read_object
from rmtrain.places import local_name, without_places
from rmtrain.scoring.batches import score_groups

SAMPLE = "demo"
SAMPLE_GROUPS = 16
_TOKENS_PER_BATCH = 2048

# Largest allowed change of a reward, as a share of the sample rewards' standard deviation. Rewards are taken relative
# to their prompt's mean, since only gaps between answers to one prompt matter.
MERGING = 1e-3  # in float32 only the order of sums changes
# An int8 base also rounds each layer's input, unlike a plain layer, so here only gross faults can be detected.
DEQUANTISING = {"nf4": MERGING, "int8": 0.5}
# Storing rounds each weight, in bfloat16 eight times as coarsely as in float16, and these errors add up over layers.
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

    Adapters of a quantised base are merged into the dequantised weights, which training used. Everything runs on the
    CPU, except for a quantised base.

    Args:
        output: the folder to write; it appears complete or not at all.
        dtype: the dtype to store the backbone in; None is that of training.
        finish: adds files to the folder before it appears; takes the folder and the content of rmtrain.json.

    Returns:
        What was exported and how much its rewards changed, as in `export --json`.

    Raises:
        InputError: the output exists, or the model can't be exported.
        CheckpointError: the checkpoint is damaged.
        RunFailedError: a reward changed more than allowed, or the disk is full; nothing is left behind.
    """
    check_output(output)
    checkpoint, proof, quantization = _load_dequantised(where, revision, verify, notify)
    had_adapters = hasattr(checkpoint.model.module, "merge_and_unload")
    model = merge(checkpoint.model)
    proof.check("merging", proof.score(model), MERGING)
    trained_dtype = _trained_dtype(checkpoint, model)
    stored = dtype or trained_dtype
    _need_space(stored_bytes(model.module, stored), output)
    exported = {"dtype": stored, "trained_dtype": trained_dtype, "merged": had_adapters, "quantization": quantization}
    with staged_folder(output, left="no part of it is left") as staging:
        update = {"dtype": stored, "quantization": "none", "max_length": checkpoint.max_length}
        scoring = checkpoint.scoring.model_copy(update=update)
        record = without_places(record_in(checkpoint.sidecar), local_name)
        write_model(model.module, checkpoint.renderer, scoring, record, staging)
        del model, checkpoint
        gc.collect()
        notify(f"scoring them from the {stored} folder, with transformers only")
        proof.check("storing", _rewards_of_folder(staging, proof.sample), STORING[stored])
        exported["proof"] = proof.figures
        scale = export_calibration(local_folder(where if revision is None else f"{where}@{revision}"), staging)
        sidecar = {**read_object(staging / SIDECAR), "exported": exported}
        write_json(staging / SIDECAR, sidecar)
        finish(staging, sidecar)
        seal(staging)
    size = sum(path.stat().st_size for path in output.iterdir())
    serve = serve_command(str(output), stored)
    result = {"ckpt": where, "output": str(output), "bytes": size, **exported, "serve": serve}
    if scale:
        result |= {"standardised": scale, "serve_standardised": serve_command(str(output), stored, scale)}
    return result


class _Proof:
    """Rewards of sample completions, and how much each step of the export changes them."""

    def __init__(self, checkpoint: Checkpoint, notify: Callable[[str], None]) -> None:
        groups = read_source(SAMPLE, "test", evaluation=True).groups[:SAMPLE_GROUPS]
        made = tokenize_groups(groups, checkpoint.tokenization._replace(over_length="truncate_prompt"))
        self.sample = [group for group in made if group is not None]
        notify(
            f"scoring {sum(len(group.suffixes) for group in self.sample)} completions of {SAMPLE} data before merging"
        )
        self._pad_id = checkpoint.renderer.pad_id
        self._rewards = self.score(checkpoint.model)
        spread = float(np.std(self._rewards))
        self.figures: dict[str, Any] = {"data": SAMPLE, "n": len(self._rewards), "standard_deviation": spread}

    def score(self, model: RewardModel) -> list[float]:
        """Rewards by rmtrain, relative to their prompt's mean."""
        return _centred(score_groups(model, self.sample, self._pad_id, _TOKENS_PER_BATCH))

    def check(self, step: str, rewards: Sequence[float], share: float) -> None:
        """Record the largest change of a reward in a step.

        Raises:
            RunFailedError: the change exceeds this share of the standard deviation.
        """
        largest = float(np.max(np.abs(np.subtract(self._rewards, rewards))))
        allowed = share * self.figures["standard_deviation"]
        if not largest <= allowed:  # true for NaN too
            raise RunFailedError(
                f"{step} changes a sample's reward by {largest:.3g}, relative to the other rewards of its prompt; "
                f"at most {allowed:.3g} is allowed, and nothing was written",
                "export with --dtype float32" if step == "storing" else "please report it: this is a bug in rmtrain",
            )
        self.figures |= {step: largest, f"{step}_allowed": allowed}
        self._rewards = list(rewards)


def check_output(output: Path) -> None:
    """Raise InputError if the folder can't be made, or is not empty."""
    if output.exists() and (not output.name or not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists", "choose another --output")
    if not output.resolve().parent.is_dir():
        raise InputError(f"{output.resolve().parent}: no such folder", "make it, or choose another --output")


def _load_dequantised(
    where: str, revision: str | None, verify: bool, notify: Callable[[str], None]
) -> tuple[Checkpoint, _Proof, str]:
    """The checkpoint in float32, the proof with its rewards, and the quantisation of its base (or `none`)."""
    require_one_label(fetch(where, revision))
    checkpoint = load_checkpoint(where, revision=revision, verify=verify)
    if checkpoint.published:
        raise InputError(
            f"{where} was published by others in the layout {checkpoint.published['layout']}",
            "export takes models trained with rmtrain and LoRA adapters; other models need no export",
        )
    in_float32(checkpoint.model.module)
    proof = _Proof(checkpoint, notify)
    if not is_quantised(checkpoint.model.module):
        return checkpoint, proof, "none"
    quantization = checkpoint.scoring.quantization
    del checkpoint  # frees memory before the next is loaded
    gc.collect()
    checkpoint = load_checkpoint(where, revision=revision, through=dequantise, verify=False)
    in_float32(checkpoint.model.module)
    proof.check("dequantising", proof.score(checkpoint.model), DEQUANTISING[quantization])
    return checkpoint, proof, quantization


def _centred(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Rewards of all groups as one array, minus their group's mean."""
    return [float(reward) for group in rewards for reward in np.subtract(group, np.mean(group))]


@torch.no_grad()
def _rewards_of_folder(folder: Path, sample: Sequence[TokenizedGroup]) -> list[float]:
    """Rewards without rmtrain: with transformers' class and forward pass, one sequence at a time."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rewards = [
        group.spread(
            [float(model(input_ids=torch.tensor([[*group.prefix, *suffix]])).logits[0, 0]) for suffix in group.suffixes]
        )
        for group in sample
    ]
    return _centred(rewards)


def _trained_dtype(checkpoint: Checkpoint, model: RewardModel) -> str:
    dtype = checkpoint.scoring.dtype or str(model.module.config.dtype).removeprefix("torch.")
    return dtype if dtype in STORING else "float32"


def _need_space(needed: int, output: Path) -> None:
    free = shutil.disk_usage(output.resolve().parent).free
    if needed > free:
        raise RunFailedError(
            f"{output}: the export takes {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free",
            "free some space, choose another --output, or a smaller --dtype",
        )
