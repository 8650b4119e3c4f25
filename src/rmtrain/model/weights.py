"""Files of a checkpoint: reading tensors by name, its fingerprint, and downloads from the hub."""

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rmtrain.data.hub import require_present
from rmtrain.errors import CheckpointError, first_line
from rmtrain.files import read_text, require_regular
from rmtrain.json_values import read_json
from rmtrain.model.known_digests import digest_of
from rmtrain.runs import MANIFEST as RUN_MANIFEST

SIDECAR = "rmtrain.json"
ADAPTER = "adapter_config.json"
MANIFEST = "checkpoint.json"  # in a training checkpoint: the digest of each of its files
CALIBRATION = "calibration.json"  # beside the weights, written after them
MERGED_BASE = "base"  # in a run folder: the base of the adapter that the run started from, with that adapter merged in
_COMPANIONS = ["*.json", "*.model", "*.jinja", "*.txt"]
_PICKLES = ["*.bin", "*.pt"]
_SAFE = ("model", "adapter_model", "pytorch_model")  # first part of the names of safetensors files of weights
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler")  # files that trainers write beside weights
_LARGE = 2**30  # bytes
_OTHERS = ["*/*", "consolidated*", *(f"{name}*" for name in _NO_WEIGHTS)]  # also the same weights in other formats


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's tensors: safetensors files, or pickles if no safetensors file is named as weights."""
    safe = sorted(folder.glob("*.safetensors"))
    if any(path.name.startswith(_SAFE) for path in safe):
        return safe
    pickles = [path for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    return [path for path in pickles if not path.name.startswith(_NO_WEIGHTS)] or safe


def read_tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[Path, str, Any]]:
    """Yield (file, name, tensor) for the wanted names in a folder's weight files; unpickling runs no code.

    The tensors are mapped into memory.

    Raises:
        CheckpointError: a file is damaged, or holds more than tensors; names it.
    """
    import torch
    from safetensors import safe_open

    for file in weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    for name in filter(wanted, tensors.keys()):
                        yield file, name, tensors.get_tensor(name)
                continue
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{file}: the pickle is damaged or holds more than tensors: {first_line(error)}",
                "nothing of it was run; take weights in safetensors files",
            ) from error
        except Exception as error:  # unpickling damaged bytes can raise any error
            raise CheckpointError(
                f"{file}: {first_line(error)}", "the file is damaged; use another checkpoint"
            ) from error
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise CheckpointError(f"{file}: holds no tensors by name", "use a file of weights alone")
        for name, tensor in content.items():
            if wanted(str(name)):
                yield file, str(name), tensor


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a folder's weight files, by name; raises as `read_tensors`."""
    return {name: tuple(tensor.shape) for _, name, tensor in read_tensors(folder)}


def fingerprint_of(*folders: Path, by_content: bool = False) -> str:
    """Digest of the weights and configs in folders.

    Files of 1 GiB and more count by size and time, so a copy has another fingerprint; or like all others by content.
    The base of an adapter is included if it is a folder; a base on the hub is fixed by its revision.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted([*weight_files(folder), *folder.glob("*config.json")]):
            state = path.stat()
            by_time = state.st_size >= _LARGE and not by_content
            content = f"{state.st_size} {state.st_mtime_ns}" if by_time else digest_of(path)
            digest.update(f"{path.name} {content}\n".encode())
        if (base := base_folder(folder)) is not None:
            digest.update(fingerprint_of(base, by_content=by_content).encode())
        digest.update(b"\n" if len(folders) > 1 else b"")
    return digest.hexdigest()


def base_folder(folder: Path) -> Path | None:
    """The folder of an adapter's base; None if the base is on the hub, or `folder` holds no adapter."""
    name = read_adapter(folder).get("base_model_name_or_path") if (folder / ADAPTER).exists() else None
    return Path(name) if isinstance(name, str) and os.path.isdir(name) else None


def read_adapter(folder: Path) -> dict[str, Any]:
    """An adapter's config. A base that the run merged itself is found in the run folder, also after that has moved."""
    values = read_object(folder / ADAPTER)
    name = values.get("base_model_name_or_path")
    if isinstance(name, str) and os.path.isabs(name) and Path(name).name == MERGED_BASE and not os.path.isdir(name):
        for run in folder.resolve().parents[:2]:  # of RUN/final and of RUN/checkpoints/checkpoint-N
            if (run / RUN_MANIFEST).is_file() and (run / MERGED_BASE / SIDECAR).is_file():
                return {**values, "base_model_name_or_path": str(run / MERGED_BASE)}
    return values


def require_files(folder: Path) -> Path:
    """Refuse a checkpoint that holds, itself or in its base, a device or a pipe to wait on; returns `folder`.

    Raises:
        CheckpointError: one of them does, or an adapter is its own base.
    """
    seen: set[Path] = set()
    place: Path | None = folder
    while place is not None and place.resolve() not in seen:
        require_regular(place, CheckpointError)
        seen.add(place.resolve())
        place = base_folder(place)
    if place is not None:
        raise CheckpointError(f"{place / ADAPTER}: the adapter is its own base", "write its base into it")
    return folder


def fingerprint_read(weights: str, *reading: Any) -> str:
    """Digest of a weights' digest and of everything else that the rewards depend on."""
    return hashlib.sha256(" ".join([weights, *map(str, reading)]).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; raises CheckpointError if it holds none."""
    value = read_json(path, "use another checkpoint", CheckpointError, odd=json.loads)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", "use another checkpoint")
    return value


def stated_license(name: str, commit: str | None) -> dict[str, str]:
    """The license that a model's card states, by the hub's keys; empty if there is no card."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        folder = Path(name)
        card = folder / "README.md" if folder.is_dir() else Path(hf_hub_download(name, "README.md", revision=commit))
        stated = ModelCard(read_text(card), ignore_metadata_errors=True).data
    except Exception:  # no card, no network, bad YAML: each library has its own errors
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: value for key in keys if isinstance(value := stated.get(key), str)}


def hub_name(where: str) -> tuple[str, str | None]:
    """Split `ID@REVISION`; an existing folder, whose name may contain @, is returned whole."""
    if "://" in where:
        raise CheckpointError(f"{where}: an address is no checkpoint", "give a folder or a hub id")
    name, _, revision = (where, "", "") if Path(where).is_dir() else where.partition("@")
    return name, revision or None


def local_folder(where: str) -> Path:
    """A local folder as it is; a hub id, with or without `@revision`, is downloaded first."""
    return require_files(fetch(*hub_name(where)))


def fetch(where: str, revision: str | None, weights: bool = True) -> Path:
    """A local folder as it is; of a hub id config, tokenizer and weights, pickles only without safetensors files."""
    if Path(where).is_dir():
        return Path(where)
    wanted = [*_COMPANIONS, *(["*.safetensors"] if weights else [])]
    folder = _snapshot(where, revision, wanted)
    if weights and not any(path.name.startswith(_SAFE) for path in folder.glob("*.safetensors")):
        folder = _snapshot(where, revision, [*wanted, *_PICKLES])
    return folder


def cached_folder(name: str, revision: str | None) -> Path | None:
    """A local folder, or the cached download of a hub id, without network; None if there is none."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not downloaded yet, or not a hub id
        return None


def _snapshot(where: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    require_present(where, revision, CheckpointError)
    try:
        return Path(snapshot_download(where, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHERS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{where}: can't be downloaded: {first_line(error)}", "give a run folder, a checkpoint folder or a hub id"
        ) from error
