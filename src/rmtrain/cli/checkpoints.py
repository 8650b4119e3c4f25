"""Which checkpoint a command works on, how it is read, and the recipe it was trained from."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.options import DtypeName, PolicyReading
from rmtrain.cli.processes import handed_down
from rmtrain.display import Display
from rmtrain.errors import CheckpointError, InputError
from rmtrain.files import read_text
from rmtrain.runs import MANIFEST, newest_finished

if TYPE_CHECKING:
    from rmtrain.model.checkpoint import Checkpoint
    from rmtrain.model.policy import Policy
    from rmtrain.model.reward_model import BackboneOptions
    from rmtrain.recipe.recorded import Recorded
    from rmtrain.recipe.schema import DataSection


class Reading(NamedTuple):
    """How a checkpoint is to be read where that is not its own way: the options of that name."""

    prompt: str | None = None
    label: str | None = None
    reference: str | None = None
    reference_free: PolicyReading | None = None
    max_length: int | None = None
    dtype: DtypeName | None = None

    @property
    def of_policy(self) -> bool:
        """The checkpoint is a language model."""
        return self.reference is not None or self.reference_free is not None

    @property
    def marks(self) -> list[str]:
        """What it adds to the name of a folder of results, so that no two readings share one."""
        marks = []
        if self.prompt is not None:
            marks += ["prompt", self.prompt if re.fullmatch(r"[\w-]+", self.prompt) else _digest(_text(self.prompt))]
        if self.label is not None:
            marks += ["label", re.sub(r"[^\w-]", "_", self.label)]
        if self.reference is not None:
            marks += ["against", _folder_name(self.reference)]
        if self.reference_free is not None:
            marks += ["ref-free", self.reference_free]
        if self.max_length is not None:
            marks += ["max-length", str(self.max_length)]
        return [*marks, *([self.dtype] if self.dtype is not None else [])]


OWN = Reading()


class Chosen(NamedTuple):
    """A checkpoint as named by the user."""

    where: str  # folder with the weights, or hub id
    run: Path | None  # the run folder it lies in
    name: str  # for folder names
    reading: Reading = OWN
    verify: bool = True  # its files against their digests

    @property
    def results(self) -> Path:
        """Where its results go: the run folder, or for others and other readings one of its name below this one."""
        return self.run if self.run is not None and self.reading == OWN else Path("results") / self.name


def choose(
    ckpt: str | None, runs: Path, display: TerminalDisplay, reading: Reading = OWN, verify: bool = True
) -> Chosen:
    """Find what --ckpt names; left out, the newest finished run, which is said.

    Raises:
        InputError: a run that is not finished, no run at all, or options that exclude each other.
    """
    if reading.of_policy and reading.label is not None:
        raise InputError("--label is for reward models, not for policies", "leave it out")
    if reading.reference is not None and reading.reference_free is not None:
        raise InputError("--reference and --reference-free exclude each other", "leave one of them out")
    found = _find(ckpt, runs, display)
    return found._replace(name="-".join([found.name, *reading.marks]), reading=reading, verify=verify)


def _find(ckpt: str | None, runs: Path, display: TerminalDisplay) -> Chosen:
    if ckpt is None:
        faults: dict[Path, str] = {}
        folder = Path(handed_down("NEWEST_RUN", lambda: str(newest_finished(runs, faults))))
        for fault in faults.values():
            display.note_once(f"passed over: {fault}")
        display.note_once(f"checkpoint: {folder} (the newest finished run under {runs}/)")
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
        run = path.resolve().parent
        if path.resolve().name == "final" and (run / MANIFEST).exists():
            return Chosen(ckpt, run, run.name)
        return Chosen(ckpt, None, _folder_name(ckpt))
    if path.exists() or ckpt.startswith((".", "/", "~")):
        raise CheckpointError(f"{ckpt}: no such folder", "give a run folder, a checkpoint folder or a hub id")
    return Chosen(ckpt, None, _folder_name(ckpt))


def _folder_name(where: str) -> str:
    """A name for results: of a hub id, readable; of a folder, its own and a digest of where it is."""
    path = Path(where)
    if path.is_dir():
        return f"{path.resolve().name}-{_digest(str(path.resolve()))}"
    return where.replace("/", "--")


def _text(prompt: str) -> str:
    """The template that a prompt is, or is the path of."""
    return read_text(prompt) if os.path.isfile(prompt) else prompt


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load(
    chosen: Chosen, display: Display, needs_rewards: str = "", options: "BackboneOptions | None" = None
) -> "Checkpoint | Policy":
    """Load the checkpoint onto this process's device.

    Args:
        chosen: what, and how it is read.
        display: takes what there is to say of it.
        needs_rewards: what a model that compares can't do; empty where it can.
        options: to run it otherwise than its reading and its recipe or config say.

    Raises:
        CheckpointError: it can't be loaded.
        InputError: it can't be read so.
    """
    found = _load_policy(chosen) if chosen.reading.of_policy else _load_reward_model(chosen, needs_rewards, options)
    for note in found.notes:
        display.note(note)
    return found


def _load_policy(chosen: Chosen) -> "Policy":
    from rmtrain.model.devices import process_state
    from rmtrain.model.policy import load_policy

    reading, device = chosen.reading, process_state().device
    return load_policy(
        chosen.where,
        reading.reference,
        reading.reference_free or "sum",
        device,
        prompt=reading.prompt,
        dtype=reading.dtype,
        max_length=reading.max_length,
    )


def _load_reward_model(chosen: Chosen, needs_rewards: str, options: "BackboneOptions | None") -> "Checkpoint":
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.model.devices import process_state
    from rmtrain.model.weights import hub_name

    reading = chosen.reading
    where, revision = hub_name(chosen.where)
    found = load_checkpoint(
        where,
        revision=revision,
        options=options,
        dtype=None if options else reading.dtype,
        device=process_state().device,
        prompt=reading.prompt,
        label=reading.label,
        verify=chosen.verify,
    )
    if needs_rewards:
        found.need_rewards(needs_rewards)
    return _as_read(found, chosen)


def _as_read(found: "Checkpoint", chosen: Chosen) -> "Checkpoint":
    """The checkpoint under the name that the user gave it, with the length asked for; its fingerprint says so."""
    from rmtrain.model.positions import position_table
    from rmtrain.model.published.encoder import EncoderModel
    from rmtrain.model.published.pair_rm import PairRenderer
    from rmtrain.model.weights import fingerprint_read

    reading, length, fingerprint = chosen.reading, found.max_length, found.fingerprint
    if reading.max_length is not None:
        if isinstance(found.renderer, PairRenderer):
            raise InputError(f"{chosen.where} is PairRM, whose lengths are fixed", "leave out --max-length")
        length = reading.max_length
        module = found.model.module
        room = position_table(module) or getattr(module.config.get_text_config(), "max_position_embeddings", None)
        room = found.max_length if isinstance(found.model, EncoderModel) else room
        if room and length > room:
            raise InputError(f"--max-length {length}: {chosen.where} has {room} positions", "ask for no more")
    if reading.max_length is not None or reading.dtype is not None:
        fingerprint = fingerprint_read(fingerprint, reading.max_length, reading.dtype)
    return replace(found, where=chosen.where, max_length=length, fingerprint=fingerprint)


def weights_of(chosen: Chosen) -> str:
    """Digest of the weights' files of a checkpoint, and of its reference, as results record it; loads nothing."""
    from rmtrain.model.weights import fingerprint_of, local_folder

    names = [name for name in (chosen.where, chosen.reading.reference) if name is not None]
    return fingerprint_of(*map(local_folder, names))


def recorded_recipe(sidecar: dict[str, Any], where: str, notify: Callable[[str], None]) -> "Recorded | None":
    """The recipe in a checkpoint's rmtrain.json as far as evaluation needs it, if there is one.

    Raises:
        CheckpointError: its data section can't be read.
    """
    from rmtrain.recipe.recorded import read_recorded

    values = sidecar.get("recipe")
    if not values:
        return None
    recorded = read_recorded(values, f"{where}/rmtrain.json")
    if recorded.unknown:
        notify(f"left out of the checkpoint's recipe, unknown to this version: {', '.join(recorded.unknown)}")
    return recorded


def own_way(chosen: Chosen, notify: Callable[[str], None]) -> "DataSection | None":
    """How a checkpoint's recipe reads data, by its rmtrain.json alone; None, said where that can't be read."""
    from rmtrain.model.weights import SIDECAR, local_folder, read_json

    path = local_folder(chosen.where) / SIDECAR
    if not path.exists():
        return None
    try:
        recorded = recorded_recipe(read_json(path), chosen.where, notify)
    except CheckpointError as error:
        notify(f"rows are read as without a recipe: {error.message}")
        return None
    return recorded.data if recorded else None
