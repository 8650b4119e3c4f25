"""The adapter that a run starts from, merged into its base: written once into the run folder, for a new adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rmtrain.data.render import Renderer
from rmtrain.errors import InputError
from rmtrain.files import staged_folder
from rmtrain.model.adapters import attach_adapter, read_config
from rmtrain.model.digests import seal, verify_files
from rmtrain.model.known_digests import digest_of
from rmtrain.model.quantization import dequantise, in_float32, is_quantised
from rmtrain.model.reward_model import dtype_of, hub_commit, load_backbone
from rmtrain.model.saving import merge, write_model
from rmtrain.model.sidecar import Scoring, read_scoring
from rmtrain.model.start import Start, fit_to_adapter
from rmtrain.model.weights import MERGED_BASE, SIDECAR, read_adapter, read_object, weight_files


def merged_start(run: Path) -> Start:
    """The merged base of a run, as its new adapter names it."""
    return Start(str((run / MERGED_BASE).resolve()), None)


def write_base(run: Path, start: Start, commit: str | None, renderer: Renderer, scoring: Scoring) -> None:
    """Merge an adapter into its base in float32, as `RUN/base`; what a run has already written is verified and kept.

    A quantised base is merged as the weights that its quantised ones stand for: the model that the adapter belongs to.

    Args:
        commit: of the base on the hub that the run began with.

    Raises:
        InputError: the run has merged another adapter before.
        CheckpointError: the adapter does not fit its base, or the merged base was damaged since it was written.
        WriteError: it can't be written; nothing of it is left.
    """
    folder, adapter = run / MERGED_BASE, cast(Path, start.adapter)
    digests = [digest_of(path) for path in weight_files(adapter)]
    if folder.exists():
        verify_files(folder)
        if read_object(folder / SIDECAR).get("merged", {}).get("digests") != digests:
            raise InputError(
                f"{folder} was merged from another adapter than {adapter}", "begin a new run, without --resume"
            )
        return
    with staged_folder(folder) as staging:
        record = {
            "base": {"name": start.name, "commit": commit or hub_commit(start.name, start.revision)},
            "merged": {"adapter": str(adapter), "digests": digests},
        }
        model = _merged(start, commit, renderer.pad_id)
        write_model(model, renderer, scoring.model_copy(update={"dtype": "float32"}), record, staging)
        seal(staging)


def _merged(start: Start, commit: str | None, pad_id: int) -> Any:
    """The whole model, in float32, that an adapter makes of its base."""
    folder = cast(Path, start.adapter)
    written = folder / SIDECAR
    scoring = read_scoring(read_object(written), written) if written.exists() else Scoring()
    options = scoring.options(dtype_of(read_config(folder, read_adapter(folder))), is_adapter=True)
    model = load_backbone(start.name, commit or start.revision, options, None, seed=0)  # the adapter brings its head
    fit_to_adapter(model.module, start, pad_id)
    plain = dequantise(model.module) if is_quantised(model.module) else model.module
    module = attach_adapter(plain, folder, start.name)
    in_float32(module)
    return merge(replace(model, module=module)).module
