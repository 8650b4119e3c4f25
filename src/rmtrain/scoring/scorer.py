"""`Scorer`: the protocol of everything that gives rewards or margins, and how a user asks for one."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from rmtrain.data.omissions import Omission
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.errors import InputError
from rmtrain.files import read_text
from rmtrain.json_values import JsonObject

if TYPE_CHECKING:
    from rmtrain.data.render import Renderer
    from rmtrain.model.checkpoint import Checkpoint, CheckpointFiles
    from rmtrain.model.reward_model import BackboneOptions
    from rmtrain.scoring.partial import OnePartial, Partials

TOKENS_PER_BATCH = 16384  # as a recipe's default


class GroupScore(NamedTuple):
    """A scorer's result for one group."""

    rewards: tuple[float, ...]  # K float32 values; empty if the scorer only compares completions
    lengths: tuple[int, ...]  # K, tokens of each completion after its rendered prompt; empty if not counted
    truncated: bool
    identical: int = 0  # preferences between completions of the same tokens, which are ties
    margins: tuple[float, ...] = ()  # one per preference (better over worse), if the scorer only compares
    members: tuple[tuple[float, ...], ...] = ()  # M times K, only of an ensemble: the rewards of each member
    omitted: tuple[Omission, ...] = ()  # what the chat template leaves out, if the process scores alone
    tokens: tuple[int, ...] = ()  # K, tokens of each completion with its prompt

    @property
    def reward_std(self) -> list[float]:
        """The standard deviation of each completion's rewards over the members of an ensemble; empty for one model."""
        return np.std(np.asarray(self.members), axis=0).tolist() if self.members else []


@dataclass(frozen=True)
class ScorerInfo:
    """What commands print and results record of a scorer."""

    where: str  # folder or hub id, as named by the user
    fingerprint: str  # digest of everything that rewards depend on: weights, rendering, label, length and dtype
    weights: str  # digest of the weights' files
    dtype: str  # the type of weights and arithmetic
    max_length: int  # tokens of prompt and one completion
    tokens_per_batch: int = TOKENS_PER_BATCH  # maximum tokens per forward pass, unless the user asks for another number
    rendering: JsonObject = field(default_factory=dict)  # how conversations become tokens
    details: JsonObject = field(default_factory=dict)  # fields of results that only this kind of scorer has
    notes: tuple[str, ...] = ()  # lines for the user
    gives_rewards: bool = True  # every completion gets a reward; otherwise each preference gets a margin
    renderer: "Renderer | None" = None  # turns conversations into tokens; None if the scorer has none
    members: tuple[str, ...] = ()  # the members of an ensemble, as the user named them
    # rewards depend on the answer's length, so a whole text must be split into prompt and answer
    by_length: bool = False

    def record(self) -> JsonObject:
        """The fields of a result that say what scored it."""
        return {**self.details, "dtype": self.dtype, "max_length": self.max_length, "weights_fingerprint": self.weights}

    def require_rewards(self, what: str) -> None:
        """Raises InputError for a scorer that only compares completions."""
        if not self.gives_rewards:
            raise InputError(
                f"{self.where} compares two completions and gives no rewards: {what} needs rewards",
                "use eval, or rewardbench on rewardbench-1 or judgebench",
            )


@dataclass(frozen=True)
class ScoringTask:
    """Groups to score, and where progress goes."""

    name: str  # what messages call the groups
    groups: Sequence[PreferenceGroup]
    tokens_per_batch: int  # maximum tokens per forward pass
    # files that keep finished batches; None keeps none and scores in this process alone
    partials: "Partials | OnePartial | None"
    display: Display
    place: Callable[[str], str] = "group {}".format  # says in which row a group is, by its id
    # leave out groups that the chat template refuses, up to a fifth of all; otherwise they are errors
    drop_refused: bool = False
    counts: bool = True  # count the tokens of each completion after its prompt
    # if a process scores alone, receives by group id why the chat template refuses a group
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """Whether this process scores the task without the others."""
        return self.partials is None or self.partials.alone

    def partial(self, tokens: str, scorer: str) -> Path | None:
        """The file that keeps finished batches, as `Partials.path`; None if nothing is kept."""
        return self.partials.path(self.name, tokens, scorer) if self.partials is not None else None

    def progress(self, done: int, total: int) -> None:
        """Show how many of the groups are scored."""
        self.display.progress(f"score {self.name}", done, total)


class Scorer(Protocol):
    """Gives every completion a reward, or every preference a margin; `rmtrain.scoring.kinds` lists the kinds."""

    @property
    def info(self) -> ScorerInfo:
        """What results record of it."""

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """A score for each group of the task, in order and on every process; None for a refused group that is left out.

        Raises:
            InputError: a group can't be scored, and the task does not allow it to be dropped.
            RunFailedError: on all processes: a completion does not fit into memory, or a reward is not finite.
        """


@dataclass(frozen=True)
class ScoringOptions:
    """Command-line options that change how a checkpoint is scored."""

    prompt: str | None = None
    label: str | None = None
    reference: str | None = None
    reference_free: Literal["avg", "sum", "norm"] | None = None
    max_length: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None  # auto: the fastest type on this machine
    calibrated: bool = False  # apply the calibration beside the weights
    combine: str | None = None  # for several checkpoints, separated by commas; see `ensemble.Combination`

    def __post_init__(self) -> None:
        """Replace auto by the fastest type, which results then name.

        Raises:
            InputError: options that exclude each other.
        """
        if self.is_policy and self.label is not None:
            raise InputError("--label is for reward models, not for policies", "leave it out")
        if self.reference is not None and self.reference_free is not None:
            raise InputError("--reference and --reference-free exclude each other", "leave one of them out")
        if self.calibrated and (self.is_policy or self.prompt is not None or self.label is not None):
            raise InputError(
                "--calibrated is for reward models with their own prompt and label",
                "leave out --prompt, --label, --reference and --reference-free",
            )
        if self.dtype == "auto":
            from rmtrain.model.compute_type import fastest_type

            object.__setattr__(self, "dtype", fastest_type().name)

    @property
    def is_policy(self) -> bool:
        """Whether the checkpoint is a language model, scored by its log-probabilities."""
        return self.reference is not None or self.reference_free is not None

    @property
    def marks(self) -> list[str]:
        """Parts of a results folder's name; they differ for options that may change rewards."""
        marks = []
        if self.prompt is not None:
            text = read_text(self.prompt) if os.path.isfile(self.prompt) else self.prompt
            marks += ["prompt", self.prompt if re.fullmatch(r"[\w-]+", self.prompt) else short_digest(text)]
        if self.label is not None:
            marks += ["label", re.sub(r"[^\w-]", "_", self.label)]
        if self.reference is not None:
            marks += ["against", folder_name(self.reference)]
        if self.reference_free is not None:
            marks += ["ref-free", self.reference_free]
        if self.max_length is not None:
            marks += ["max-length", str(self.max_length)]
        named = (self.dtype, "calibrated" if self.calibrated else None, self.combine and self.combine.replace(":", "-"))
        return [*marks, *(part for part in named if part is not None)]


def folder_name(where: str) -> str:
    """A folder name for a checkpoint: its hub id, or the folder's name and a digest of its path."""
    path = Path(where)
    if path.is_dir():
        return f"{path.resolve().name}-{short_digest(str(path.resolve()))}"
    return where.replace("/", "--")


def short_digest(text: str) -> str:
    """Eight hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ScorerRequest:
    """A checkpoint named by the user, whose files are read at most once."""

    where: str  # folder or hub id
    options: ScoringOptions = ScoringOptions()
    verify: bool = True  # check its files against the digests that were recorded with them
    device: str | None = None  # where the weights go; None is this process's own device

    @cached_property
    def files(self) -> "CheckpointFiles":
        """The files of a reward model; raises CheckpointError if they are not a reward model."""
        from rmtrain.model.checkpoint import find_checkpoint
        from rmtrain.model.weights import hub_name

        where, revision = hub_name(self.where)
        return find_checkpoint(where, revision, self.options.prompt, self.options.label, self.verify)

    def load(self, backbone: "BackboneOptions | None" = None) -> "Checkpoint":
        """The reward model on this process's device, with the options applied.

        `backbone` (dtype, quantisation, attention and packing) overrides the options and the checkpoint.
        """
        from rmtrain.model.devices import process_state

        options, dtype = self.options, None if backbone else self.options.dtype
        checkpoint = self.files.load(backbone, dtype, self.device or process_state().device)
        length = options.max_length
        if length is not None and checkpoint.max_positions and length > checkpoint.max_positions:
            raise InputError(
                f"--max-length {length}: {self.where} has {checkpoint.max_positions} positions", "ask for no more"
            )
        return replace(checkpoint, where=self.where, max_length=length or checkpoint.max_length)
