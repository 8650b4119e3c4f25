"""The parts of an average of weights: what is read of each checkpoint, and what all of them must share."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import safe_open

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError, InputError, RmtrainError, first_line
from rmtrain.model.checkpoint import CheckpointFiles, find_checkpoint
from rmtrain.model.forward import HEAD
from rmtrain.model.known_digests import digest_of
from rmtrain.model.published.layouts import PLAIN
from rmtrain.model.sidecar import Scoring
from rmtrain.model.start import Start, find_start, require_one_label
from rmtrain.model.weights import cached_folder, fetch, fingerprint_of, hub_name, require_files, weight_files
from rmtrain.recipe.schema import ModelSection

UNKNOWN = "not recorded"
# of PEFT's config, what makes an adapter's change of a layer something else than scale * B A with one rank
_OTHER_ADAPTERS = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "target_parameters", "megatron_config")


class TensorFiles:
    """The tensors of a folder's safetensors files by name; each is mapped into memory when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the names; raises CheckpointError for a damaged file, or for pickles."""
        self.folder, self.places, self.kinds = folder, dict[str, Path](), dict[str, tuple[str, tuple[int, ...]]]()
        for file in weight_files(folder):
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 (not a dict)
                        part = tensors.get_slice(name)
                        self.places[name], self.kinds[name] = file, (part.get_dtype(), tuple(part.get_shape()))
            except Exception as error:  # safetensors has errors of its own
                raise CheckpointError(
                    f"{file}: {first_line(error)}", "averages need whole weights in safetensors files"
                ) from error

    def get(self, name: str) -> Any:
        """The tensor, as stored."""
        with safe_open(self.places[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def find(self, name: str) -> str | None:
        """The name here of a reward model's tensor; a base without a head lacks the prefix of its backbone."""
        return next((known for known in (name, name.partition(".")[2]) if known in self.places), None)


class Trait(NamedTuple):
    """Something in which all parts must agree."""

    what: str
    key: object  # equal for two parts that agree
    shown: str


@dataclass(frozen=True)
class Part:
    """A checkpoint that is to be averaged, its weights not yet read."""

    where: str  # its name in messages
    files: CheckpointFiles
    scoring: Scoring
    renderer: Renderer  # how it reads conversations

    @cached_property
    def tensors(self) -> TensorFiles:
        """Its own tensors: those of adapters and head, or of the whole model."""
        return TensorFiles(self.files.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of its weights' files."""
        return fingerprint_of(self.files.folder)

    @property
    def recorded(self) -> dict[str, Any]:
        """The recipe beside it; empty where there is none."""
        return cast(dict[str, Any], self.files.sidecar.get("recipe") or {})

    @property
    def seed(self) -> int | None:
        """The seed of its run, from which a new score head was drawn."""
        seed = (self.recorded.get("run") or {}).get("seed")
        return seed if isinstance(seed, int) else None

    @cached_property
    def start(self) -> Start | None:
        """What its training started from; None if its recipe does not say, or if that is no longer there."""
        model = self.recorded.get("model") or {}
        try:
            return find_start(ModelSection(name=model["name"], revision=model.get("revision")))
        except (KeyError, ValueError, OSError, RmtrainError):
            return None

    @property
    def base(self) -> tuple[str, str | None] | None:
        """Folder or hub id and commit of the base model; None where nothing names it."""
        if self.files.adapter is not None:
            return self.files.adapter["base_model_name_or_path"], self.files.adapter.get("revision")
        recorded = self.files.sidecar.get("base") or {}
        return (recorded["name"], recorded.get("commit")) if recorded.get("name") else None

    @property
    def scale(self) -> float:
        """The scale of an adapter; see `scale_of`."""
        return scale_of(cast(dict[str, Any], self.files.adapter))

    def traits(self) -> Iterator[Trait]:
        """All that the parts of an average must share, besides the names and shapes of their tensors."""
        kind = "a whole model" if self.files.adapter is None else "an adapter"
        yield Trait("kind", kind, kind)
        yield Trait("base model", *_base(self))
        yield Trait("start of the score head", *_head_start(self))
        yield Trait("quantisation of the base", self.scoring.quantization, self.scoring.quantization)
        contract = self.renderer.contract()
        for key, value in contract.items():
            yield Trait(f"{key} of the rendering", value, str(value))
        yield Trait("number of rendering settings", len(contract), str(len(contract)))


def open_part(where: str, verify: bool = True) -> Part:
    """Read what an average needs to know about a checkpoint.

    Raises:
        CheckpointError: it is damaged, or no reward model with one label.
        InputError: its kind can't be averaged.
    """
    name, revision = hub_name(where)
    files = find_checkpoint(name, revision, None, None, verify)
    if files.layout is not PLAIN:
        raise InputError(f"{where} is {files.layout.name}, which can't be averaged", "average plain models or adapters")
    require_one_label(files.folder)
    adapter = files.adapter
    if adapter is not None:
        if adapter.get("peft_type", "LORA") != "LORA":
            raise InputError(f"{where} is an adapter of the kind {adapter['peft_type']}", "only LoRA is averaged")
        if other := next((key for key in _OTHER_ADAPTERS if adapter.get(key)), None):
            raise InputError(
                f"{where} is a LoRA adapter with {other}: an average of its factors is not that of its weights",
                "`rmtrain export` each adapter, and average the whole models",
            )
    return Part(where, files, *files.reading())


def require_alike(parts: Sequence[Part]) -> None:
    """Refuse parts that are too unlike for their average to be a working model.

    Weights may be averaged where the models come from the same base and the same head, and so lie in one basin of the
    loss (arXiv 2203.05482, 2401.12187).

    Raises:
        InputError: names the two parts and in what they differ.
    """
    first = parts[0]
    for part in parts[1:]:
        for trait, other in zip(first.traits(), part.traits(), strict=False):
            if (trait.what, trait.key) != (other.what, other.key):
                _refuse(first, part, f"they differ in the {trait.what}: {trait.shown}, and {other.shown}")
        shapes, others = _shapes(first), _shapes(part)
        if missing := sorted(shapes.keys() ^ others.keys()):
            _refuse(first, part, f"only one of them has the weights {', '.join(missing[:3])}")
        if name := next((name for name in shapes if shapes[name] != others[name]), None):
            _refuse(first, part, f"they differ in {name}: {_in_words(shapes[name])}, and {_in_words(others[name])}")


def scale_of(adapter: dict[str, Any]) -> float:
    """What the product of a LoRA layer's two factors is multiplied by, from PEFT's config."""
    rank = adapter["r"]
    return float(adapter["lora_alpha"] / (rank**0.5 if adapter.get("use_rslora") else rank))


def base_tensors(part: Part) -> TensorFiles:
    """The tensors of the base model of a part.

    Raises:
        CheckpointError: nothing names it, or it can't be fetched.
    """
    if part.base is None:
        raise CheckpointError(f"{part.where} does not record its base model", "average without --extrapolate")
    return TensorFiles(require_files(fetch(*part.base)))


def _refuse(first: Part, other: Part, why: str) -> None:
    raise InputError(
        f"{first.where} and {other.where} can't be averaged: {why}",
        "average models that were trained from the same base and head; others can be scored together by --combine",
    )


def _base(part: Part) -> tuple[object, str]:
    """A base is known by its commit on the hub, or by the digests of its files where it is a folder that is there."""
    if part.base is None:
        return UNKNOWN, UNKNOWN
    name, revision = part.base
    if not Path(name).is_dir():
        return (name, revision), f"{name}@{revision}" if revision else name
    digests = " ".join(f"{path.name} {digest_of(path)}" for path in weight_files(Path(name)))
    digest = hashlib.sha256(digests.encode()).hexdigest()
    return digest, f"{name} (SHA-256 {digest[:8]})"


def _head_start(part: Part) -> tuple[object, str]:
    """Where a score head began: that of the model that the run started from, or drawn from the run's seed."""
    if part.start is not None and part.start.adapter is not None:
        digest = fingerprint_of(part.start.adapter)
        return digest, f"that of the adapter {part.start.adapter} (SHA-256 {digest[:8]})"
    folder = cached_folder(*part.base) if part.base is not None else None
    if folder is not None and any(name.endswith(f"{HEAD}.weight") for name in TensorFiles(folder).places):
        return "of the base", "that of the base model"
    return (part.seed, f"drawn from the seed {part.seed}") if part.seed is not None else (UNKNOWN, UNKNOWN)


def _shapes(part: Part) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape by name; an adapter's factors without their rank, in which adapters may differ."""
    shapes = {}
    for name, (dtype, shape) in part.tensors.kinds.items():
        side = is_factor(name)
        shapes[name] = (dtype, shape if side is None else tuple(n for axis, n in enumerate(shape) if axis != side))
    return shapes


def is_factor(name: str) -> int | None:
    """The axis of the rank in a LoRA factor, 0 of A [r, in] and 1 of B [out, r]; None for other weights."""
    marks = {"lora_A": 0, "lora_embedding_A": 0, "lora_B": 1, "lora_embedding_B": 1}
    return next((axis for mark, axis in marks.items() if mark in name.split(".")), None)


def _in_words(kind: tuple[str, tuple[int, ...]]) -> str:
    return f"{kind[0]} {list(kind[1])}"
