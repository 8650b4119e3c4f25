"""Digests of a checkpoint's files: recorded when it is written, checked before it is used."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rmtrain.errors import CheckpointError
from rmtrain.files import write_json
from rmtrain.json_values import JsonObject
from rmtrain.model.known_digests import digest_of
from rmtrain.model.sidecar import read_scoring
from rmtrain.model.weights import ADAPTER, CALIBRATION, MANIFEST, SIDECAR, base_folder, read_object, weight_files

_KINDS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")  # the files that make a model and its tokenizer
_OTHERS = (SIDECAR, MANIFEST, CALIBRATION, "trainer_state.json")
_HINT = "the file is damaged: use another checkpoint; if it was changed on purpose, add --no-verify"


def seal(folder: Path, own: bool = True) -> None:
    """Write the digests of a complete checkpoint's files, and of its base's if that is a folder, into `rmtrain.json`.

    A training checkpoint has the digests of its own files in its manifest.
    """
    sidecar = read_object(folder / SIDECAR)
    block = {key: value for key, value in sidecar["scoring"].items() if key != "sha256"}
    kinds = _KINDS if own else (ADAPTER,)
    block["files"] = _digests(path for kind in kinds for path in folder.glob(kind) if path.name not in _OTHERS)
    if (base := base_folder(folder)) is not None:
        block["base_files"] = _digests([*weight_files(base), base / "config.json"])
    write_json(folder / SIDECAR, {**sidecar, "scoring": {**block, "sha256": _digest_of_block(block)}})


def verify_files(folder: Path) -> None:
    """Check that a checkpoint, and the base of its adapter, are as they were written; older ones have no digests.

    Raises:
        CheckpointError: names the file that is damaged or missing.
    """
    sidecar = read_object(folder / SIDECAR) if (folder / SIDECAR).exists() else {}
    if sidecar:
        read_scoring(sidecar, folder / SIDECAR)  # a later version may make its digests otherwise: its block is refused
    block: JsonObject = sidecar.get("scoring", {})
    if "sha256" in block and block["sha256"] != _digest_of_block(block):
        raise CheckpointError(f"{folder / SIDECAR}: its scoring block has changed since it was written", _HINT)
    if (folder / MANIFEST).exists():
        _check(folder, _of_manifest(folder / MANIFEST), "has changed since it was saved")
    _check(folder, block.get("files", {}), "has changed since it was saved")
    if block.get("base_files") and (base := base_folder(folder)) is not None:
        _check(base, block["base_files"], f"has changed since the adapter in {folder} was trained on it")


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digests by file name, several files at a time."""
    files = sorted(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip((path.name for path in files), pool.map(_digest, files), strict=True))


def _digest(path: Path) -> str:
    if path.name != ADAPTER:
        return digest_of(path)
    return digest_of_values({**read_object(path), "base_model_name_or_path": None})  # which may have moved


def _check(folder: Path, recorded: Any, what: str) -> None:
    if not isinstance(recorded, Mapping):
        raise CheckpointError(f"{folder / SIDECAR}: its digests can't be read", _HINT)
    paths = [folder / Path(name).name for name in recorded]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing", "use another checkpoint")
    present = _digests(paths)
    if changed := [path for path in paths if present[path.name] != recorded[path.name]]:
        raise CheckpointError(f"{changed[0]}: {what}: its SHA-256 differs", _HINT)


def _of_manifest(path: Path) -> JsonObject:
    """Digests of a training checkpoint's model, as the manifest beside it has them."""
    try:
        values = read_object(path)
        whole = values.pop("digest") == digest_of_values(values)
        entries = {name: entry["sha256"] for name, entry in values["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its digests can't be read ({type(error).__name__})", _HINT) from error
    if not whole:
        raise CheckpointError(f"{path}: has changed since it was written", _HINT)
    kinds = tuple(kind.removeprefix("*") for kind in _KINDS)
    own = (name for name in entries if name.endswith(kinds) and "/" not in name and name != ADAPTER)
    return {name: entries[name] for name in own}


def _digest_of_block(block: JsonObject) -> str:
    return digest_of_values({key: value for key, value in block.items() if key != "sha256"})


def digest_of_values(values: JsonObject) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
