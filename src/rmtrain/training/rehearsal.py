"""The checks of `train` before its first step, for a dry run: no weights are loaded and no run is started."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.display import Display
from rmtrain.model.reward_model import load_config, set_pad
from rmtrain.model.start import MERGED_PLACE, Start, build_model, find_start, merging_note
from rmtrain.recipe.schema import Recipe
from rmtrain.runs import require_writable
from rmtrain.training.build import RunPlan
from rmtrain.training.lifecycle import reopen_run
from rmtrain.training.resume import choose_checkpoint, run_fingerprint
from rmtrain.training.tracking import check_login

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def rehearse(
    recipe: Recipe,
    splits: Mapping[str, ReadySplit],
    renderer: Renderer,
    plan: RunPlan,
    resume: Path | None,
    allow_changes: bool,
    display: Display,
) -> list[str]:
    """Run the checks between `plan_run` and the first step, except for memory; returns notes for the user.

    Raises:
        InputError: as `train` would.
        CheckpointError: as `train` would.
    """
    check_login(recipe.tracking.wandb)
    if resume is None:
        require_writable(Path(recipe.run.folder))
    else:
        with ExitStack() as stack:
            reopen_run(resume, stack, write=False)
            strategy, processes = plan.sharding.strategy, plan.batches.processes
            fingerprint = run_fingerprint(recipe, splits, renderer, strategy, processes)
            choose_checkpoint(resume, fingerprint, display, allow_changes)
    start = find_start(recipe.model)
    if _has_weights(start):
        return [*build_model(recipe, renderer.pad_id, on_meta=True).notes]
    config = load_config(start.name, start.revision)
    if start.adapter is None:  # it may bring more embeddings than its base has
        set_pad(config, renderer.pad_id, start.name)
    return [
        *merging_note(recipe, start, config, MERGED_PLACE),
        f"{start.name}: its weights are not on this machine yet, so they are not checked",
    ]


def _has_weights(start: Start) -> bool:
    cached = (try_to_load_from_cache(start.name, name, revision=start.revision) for name in _WEIGHTS)
    return Path(start.name).is_dir() or any(isinstance(path, str) for path in cached)
