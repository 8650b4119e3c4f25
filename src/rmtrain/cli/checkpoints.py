"""Which checkpoint a command works on, and the recipe it was trained from."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.processes import is_child
from rmtrain.errors import CheckpointError, InputError
from rmtrain.runs import MANIFEST, newest_finished

if TYPE_CHECKING:
    from rmtrain.model.checkpoint import Checkpoint
    from rmtrain.model.policy import Policy
    from rmtrain.recipe.schema import Recipe


class Chosen(NamedTuple):
    """A checkpoint as named by the user."""

    where: str  # folder with the weights, or hub id
    run: Path | None  # the run folder it lies in
    name: str  # for folder names
    prompt: str | None = None  # --prompt
    label: str | None = None  # --label

    @property
    def results(self) -> Path:
        """Where its results go: the run folder, or a folder of the checkpoint's name below this one."""
        return self.run if self.run is not None else Path("results") / self.name


def choose(
    ckpt: str | None, runs: Path, display: TerminalDisplay, prompt: str | None = None, label: str | None = None
) -> Chosen:
    """Find what --ckpt names; left out, the newest finished run, which is said.

    --prompt and --label are part of the name, so that no two readings of a model share a folder of results.

    Raises:
        InputError: a run that is not finished, or no run at all.
    """
    found = _find(ckpt, runs, display)
    parts = [found.name]
    if prompt is not None:
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        parts += ["prompt", prompt if re.fullmatch(r"[\w-]+", prompt) else digest]
    if label is not None:
        parts += ["label", re.sub(r"[^\w-]", "_", label)]
    return found._replace(name="-".join(parts), prompt=prompt, label=label)


def _find(ckpt: str | None, runs: Path, display: TerminalDisplay) -> Chosen:
    if ckpt is None:
        folder = newest_finished(runs)
        if not is_child():  # the command that started this process has said it
            display.note(f"checkpoint: {folder} (the newest finished run under {runs}/)")
        return Chosen(str(folder / "final"), folder, folder.name)
    path = Path(ckpt)
    if (path / MANIFEST).exists():
        if not (path / "final").is_dir():
            raise InputError(
                f"{path} has no final model: the run is not finished",
                f"resume it with `rmtrain train --resume {path}`, or name one of its checkpoints/",
            )
        return Chosen(str(path / "final"), path, path.name)
    if path.is_dir():
        run = next((parent for parent in path.resolve().parents if (parent / MANIFEST).exists()), None)
        is_final = path.name == "final"
        return Chosen(ckpt, run if is_final else None, path.resolve().name)
    if path.exists() or ckpt.startswith((".", "/", "~")):
        raise CheckpointError(f"{ckpt}: no such folder", "give a run folder, a checkpoint folder or a hub id")
    return Chosen(ckpt, None, ckpt.replace("/", "--"))


def load(chosen: Chosen, needs_rewards: str = "") -> "Checkpoint":
    """Load the checkpoint onto this process's device; `needs_rewards` names what a model that compares can't do."""
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.model.devices import process_state

    where, _, revision = chosen.where.partition("@")
    device = process_state().device
    found = load_checkpoint(where, revision=revision or None, device=device, prompt=chosen.prompt, label=chosen.label)
    if needs_rewards:
        found.need_rewards(needs_rewards)
    return found


def trained_recipe(checkpoint: "Checkpoint | Policy") -> "Recipe | None":
    """The recipe in a checkpoint's rmtrain.json, if it has one."""
    from rmtrain.recipe.schema import Recipe

    values: dict[str, Any] | None = checkpoint.sidecar.get("recipe")
    return Recipe.model_validate_json(json.dumps(values)) if values else None


def tokens_at_once(checkpoint: "Checkpoint | Policy") -> int:
    """Most tokens through the backbone at once when scoring: its recipe's, or the schema's default."""
    from rmtrain.recipe.schema import EvaluationSection

    recipe = trained_recipe(checkpoint)
    return (recipe.evaluation if recipe else EvaluationSection()).tokens_per_batch
