"""Averages of weights: of whole models, tensor by tensor, or of the changes that LoRA adapters make, exactly.

An average of models trained from one base keeps their accuracy where its parts err differently (model soups, arXiv
2203.05482; WARM, arXiv 2401.12187). Extrapolation goes on from the start of training in the direction of the average
(ExPO, arXiv 2404.16792).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from rmtrain.errors import InputError
from rmtrain.files import staged_folder, write_json
from rmtrain.model.adapters import read_config
from rmtrain.model.digests import seal
from rmtrain.model.forward import HEAD
from rmtrain.model.parts import Part, TensorFiles, base_tensors, is_factor, require_alike, scale_of
from rmtrain.model.reward_model import drawn_head
from rmtrain.model.saving import check_weights, write_companions
from rmtrain.model.sidecar import record_in
from rmtrain.model.weights import ADAPTER, read_adapter, read_object, weight_files

_PREFIX = "base_model.model."  # before the names of an adapter's tensors


@dataclass(frozen=True)
class Average:
    """A weighted mean of checkpoints, and how far it is carried on from the start of their training."""

    parts: tuple[Part, ...]  # at least one
    weights: tuple[float, ...]  # one for each part; their sum is 1
    extrapolate: float = 0.0  # alpha: start + (1 + alpha) (mean - start); 0 is the mean itself
    rank: int | None = None  # of an averaged adapter; None is the sum of the parts' ranks, which loses nothing


class Written(NamedTuple):
    """The rank of an averaged adapter, and what it cost; both None for whole models."""

    rank: int | None
    lost: float | None  # the share of the norm of all layers' changes that a smaller rank leaves out


def write_average(average: Average, folder: Path, record: Mapping[str, object], replace: bool = False) -> Written:
    """Write an average as a checkpoint like its parts, whole or not at all.

    Whole models are averaged one tensor at a time. Factors of adapters are concatenated: sum_i w_i s_i B_i A_i has the
    factors [w_1 s_1 B_1, w_2 s_2 B_2, ...] and [A_1; A_2; ...], while a mean of the A_i times a mean of the B_i would
    be another matrix. The score head and other whole weights of adapters are averaged as they are. The record says in
    its rmtrain.json how it was made. Only with `replace` may an existing folder hold files.

    Raises:
        InputError: the parts can't be averaged, or not extrapolated.
        CheckpointError: the average is not finite, or a part is damaged.
        WriteError: it can't be written; nothing of it is left.
    """
    require_alike(average.parts)
    first = average.parts[0]
    whole = _WholeWeights(average)
    with staged_folder(folder, replace=replace) as staging:
        if first.files.adapter is None:
            for file in weight_files(first.files.folder):
                shutil.copy(file, staging)
                _overwrite(staging / file.name, whole.mean)
            index = "model.safetensors.index.json"
            if (first.files.folder / index).exists():
                shutil.copy(first.files.folder / index, staging)
            written = Written(None, None)
        else:
            written = _write_adapter(average, whole, staging)
        config = read_config(first.files.folder, first.files.adapter)
        averaged = {**record, **({"rank": written.rank, "rank_loss": written.lost} if written.rank else {})}
        made = {**record_in(first.files.sidecar), "averaged": averaged}
        write_companions(config, first.renderer, staging, first.scoring, made)
        check_weights(staging)
        seal(staging)
    return written


class _WholeWeights:
    """Weighted sums of weights that are stored whole, extrapolated from the start of training if that is asked for."""

    def __init__(self, average: Average) -> None:
        self._alpha = average.extrapolate
        self._terms = [
            (part, (1 + self._alpha) * weight) for part, weight in zip(average.parts, average.weights, strict=True)
        ]
        self._first = average.parts[0]
        self._base = base_tensors(self._first) if self._alpha else None

    def mean(self, name: str) -> torch.Tensor:
        """The averaged tensor, summed in float32 and stored in its own dtype; whole numbers are those of the first."""
        own: torch.Tensor = self._first.tensors.get(name)
        if not own.is_floating_point():
            return own
        total = sum(weight * part.tensors.get(name).float() for part, weight in self._terms)
        if self._alpha:
            total = total - self._alpha * self._begun(name, own)
        assert isinstance(total, torch.Tensor)
        return total.to(own.dtype)

    def _begun(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """A tensor as it was when training began."""
        first = self._first
        start = first.start.adapter if first.start is not None else None
        if start is not None and first.files.adapter is None:
            raise InputError(
                f"{first.where} was trained from {start}, merged into its base: there are no files of that start",
                "average without --extrapolate",
            )
        if start is not None and name in (files := TensorFiles(start)).places:
            return files.get(name).float()  # type: ignore[no-any-return]
        assert self._base is not None
        stored = self._base.find(name.removeprefix(_PREFIX))
        if stored is not None and self._base.kinds[stored][1] == tuple(own.shape):
            return self._base.get(stored).float()  # type: ignore[no-any-return]
        if stored is None and name.endswith(f"{HEAD}.weight") and first.seed is not None:
            return drawn_head(own.shape, first.seed)
        raise InputError(
            f"{first.where}: its base has no {name} of its shape, so there is nothing to extrapolate from",
            "average without --extrapolate",
        )


def _overwrite(file: Path, tensor_of: Callable[[str], torch.Tensor]) -> None:
    """Replace the values in a copied safetensors file, tensor by tensor; names, types and shapes stay."""
    with open(file, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                stream.seek(8 + size + entry["data_offsets"][0])
                stream.write(tensor_of(name).contiguous().flatten().view(torch.uint8).numpy().data)


def _write_adapter(average: Average, whole: _WholeWeights, folder: Path) -> Written:
    first = average.parts[0]
    deltas = _deltas(average)
    tensors, lost, total = dict[str, torch.Tensor](), 0.0, 0.0
    for name in sorted(first.tensors.places):
        side = is_factor(name)
        if side is None:
            tensors[name] = whole.mean(name)
        elif side == 0:
            other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            a = torch.cat([files.get(name).float() for files, _ in deltas])
            b = torch.cat([scale * files.get(other).float() for files, scale in deltas], dim=1)
            if average.rank is not None:
                b, a, left_out, norm = reduce_rank(b, a, average.rank)
                lost, total = lost + left_out, total + norm
            tensors[name], tensors[other] = a.contiguous(), b.contiguous()
    rank = next(tensors[name].shape[0] for name in tensors if is_factor(name) == 0)
    values = {**read_object(first.files.folder / ADAPTER), "r": rank, "lora_alpha": rank, "use_rslora": False}
    write_json(folder / ADAPTER, values)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return Written(rank, (lost / total) ** 0.5 if total else 0.0)


def _deltas(average: Average) -> list[tuple[TensorFiles, float]]:
    """Each adapter's factors, and their product's weight in the sum; an adapter that training began with is one too."""
    alpha, first = average.extrapolate, average.parts[0]
    factors = [
        (part.tensors, (1 + alpha) * weight * part.scale)
        for part, weight in zip(average.parts, average.weights, strict=True)
    ]
    start = first.start
    if alpha and start is not None and start.adapter is not None and first.base and start.name == first.base[0]:
        factors.append((TensorFiles(start.adapter), -alpha * scale_of(read_adapter(start.adapter))))
    return factors


def reduce_rank(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The best approximation of B A by a lower rank (Eckart and Young 1936), found without forming the product.

    Args:
        b: [out, R].
        a: [R, in].
        rank: the rank of the approximation; more than R counts as R.

    Returns:
        Factors [out, rank] and [rank, in], the squared Frobenius norm of what is left out, and that of B A.
    """
    outer, inner = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(outer.R @ inner.R.T)
    kept, rank = min(rank, len(s)), min(rank, a.shape[0])
    made_b, made_a = b.new_zeros(b.shape[0], rank), a.new_zeros(rank, a.shape[1])  # small layers have fewer than R
    root = s[:kept].sqrt()
    made_b[:, :kept], made_a[:kept] = outer.Q @ (u[:, :kept] * root), (root[:, None] * v[:kept]) @ inner.Q.T
    return made_b, made_a, float((s[kept:] ** 2).sum()), float((s**2).sum())
