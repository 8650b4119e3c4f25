"""Reward models on disk: a plain sequence-classification folder or its LoRA adapter, and `rmtrain.json` beside it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.adapters import attach_adapter, keep_label, make_room, read_config, tokenizer_folder
from rmtrain.model.digests import verify_files
from rmtrain.model.forward import HEAD, check_finite
from rmtrain.model.positions import max_positions, position_table
from rmtrain.model.published.encoder import TEXT_PAIR, longest
from rmtrain.model.published.layouts import ENCODER, PAIR_RM, PLAIN, CheckpointFormat
from rmtrain.model.published.load import Published, find_published, label_index
from rmtrain.model.published.pair_rm import MAX_LENGTH
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.quantization import is_quantised
from rmtrain.model.reward_model import BackboneOptions, RewardModel, dtype_of, load_backbone, set_pad
from rmtrain.model.saving import check_weights
from rmtrain.model.sidecar import Scoring, read_scoring
from rmtrain.model.weights import (
    ADAPTER,
    SIDECAR,
    fetch,
    fingerprint_of,
    fingerprint_read,
    read_adapter,
    read_object,
    read_shapes,
    require_files,
)


@dataclass(frozen=True)
class Checkpoint:
    """A reward model as loaded for scoring."""

    model: RewardModel
    renderer: Renderer  # how conversations become tokens
    max_length: int  # tokens of prompt and one completion
    max_positions: int | None  # the highest `max_length` that the model can take; None is any
    # the content of rmtrain.json, a record of how it was made; empty for other people's checkpoints
    sidecar: dict[str, Any]
    where: str
    weights: str  # digest of its weight files
    published: dict[str, Any] = field(default_factory=dict)  # how other people's were read: layout, prompt and label
    # the pad id that its published config (an adapter's: its base's) had before the renderer's replaced it
    config_pad: int | None = None
    scoring: Scoring = field(default_factory=Scoring)  # how it is scored: as rmtrain.json says, or by default
    layout: CheckpointFormat = PLAIN  # how its files were published

    @property
    def fingerprint(self) -> str:
        """Digest of everything that rewards depend on: weights, label, length, dtype and rendering."""
        dtype, rendering = self.model.module.compute_dtype, self.renderer.contract()
        return fingerprint_read(self.weights, self.published, self.max_length, dtype, rendering)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it is run."""
        contract = self.scoring.contract
        undated = contract and "date" not in contract and "date" in self.renderer.contract()
        older = ("this checkpoint does not record which date its chat template printed in training",) if undated else ()
        return (*self.model.notes, *self.renderer.notes, *older)

    @property
    def tokenization(self) -> Tokenization:
        """How it tokenises groups."""
        return Tokenization(self.renderer, self.max_length, self.scoring.over_length)

    def require_decoder(self, what: str) -> None:
        """Raises InputError for encoders and for PairRM."""
        if self.layout in (ENCODER, PAIR_RM):
            raise InputError(
                f"{self.where} is {self.layout.name} ({type(self.model.module).__name__}): {what} needs a decoder",
                "use eval, score, compare, or rewardbench without it",
            )


def load_checkpoint(
    where: str,
    *,
    revision: str | None = None,
    options: BackboneOptions | None = None,
    prompt: str | None = None,
    label: str | None = None,
    through: Callable[[Any], Any] | None = None,
    verify: bool = True,
) -> Checkpoint:
    """Load a reward model for scoring; see `find_checkpoint` and `CheckpointFiles.load`."""
    return find_checkpoint(where, revision, prompt, label, verify).load(options, through=through)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a reward model, their weights not yet loaded."""

    where: str
    folder: Path
    sidecar: dict[str, Any]  # the content of rmtrain.json; empty for other people's checkpoints
    adapter: dict[str, Any] | None  # the content of adapter_config.json; None for a whole model
    published: Published | None  # the layout of a whole model of other people; None for other checkpoints
    prompt: str | None  # the prompt for a model of other people; see `make_renderer`
    label: str | None  # the label that is the reward, for a model of other people with several

    @property
    def layout(self) -> CheckpointFormat:
        """How the files were published; checkpoints of ours and adapters are plain."""
        return self.published.layout if self.published else PLAIN

    def reading(self) -> tuple[Scoring, Renderer]:
        """How a checkpoint of ours or an adapter is scored, and how it reads conversations, as its contract says."""
        scoring = read_scoring(self.sidecar, self.folder / SIDECAR) if self.sidecar else Scoring()
        renderer = make_renderer(
            str(tokenizer_folder(self.folder, None if self.sidecar else self.adapter)), self.prompt
        )
        contract = scoring.contract
        return scoring, renderer if contract is None else renderer.check_contract(contract, self.where)

    def load(
        self,
        options: BackboneOptions | None = None,
        dtype: str | None = None,
        device: Any = None,
        through: Callable[[Any], Any] | None = None,
    ) -> Checkpoint:
        """Load the model.

        Args:
            options: how to run it; None is as it was trained, or in the dtype of its config.
            through: applied to an adapter's base before the adapter is put on it.

        Raises:
            CheckpointError: it is no reward model, is damaged, or renders differently from its contract.
        """
        if self.published is not None:
            checkpoint = _load_published(self.published, options, dtype)
        else:
            checkpoint = _load_own(self, options, dtype, through)
        module = checkpoint.model.module
        module.eval()
        if device is not None and not is_quantised(module):
            module.to(device)
        check_finite(module, self.where)
        return checkpoint


def find_checkpoint(
    where: str, revision: str | None, prompt: str | None, label: str | None, verify: bool
) -> CheckpointFiles:
    """Recognise a reward model by its files: an adapter folder, a model folder, or a hub id.

    `revision` is that of a hub id, `prompt` and `label` are those of `CheckpointFiles`, and `verify` checks the files
    against the digests that were recorded with them.

    Raises:
        CheckpointError: it is no reward model, or is damaged.
        InputError: an unknown label, or a prompt or label for a model that brings its own.
    """
    folder = require_files(fetch(where, revision))
    if verify:
        verify_files(folder)
    sidecar = read_object(folder / SIDECAR) if (folder / SIDECAR).exists() else {}
    if not sidecar and not (folder / ADAPTER).exists():
        published = find_published(where, folder, prompt, label)
        return CheckpointFiles(where, folder, sidecar, None, published, prompt, label)
    if sidecar and (label is not None or prompt is not None):
        named = "prompt" if label is None else "label"
        raise InputError(f"{where}: a {named} is for models that were not trained here", f"leave out --{named}")
    adapter = read_adapter(folder) if (folder / ADAPTER).exists() else None
    if adapter is not None and not adapter.get("base_model_name_or_path"):
        raise CheckpointError(f"{folder / ADAPTER} names no base model", "write base_model_name_or_path into it")
    return CheckpointFiles(where, folder, sidecar, adapter, None, prompt, label)


def _load_own(
    files: CheckpointFiles,
    options: BackboneOptions | None,
    dtype: str | None,
    through: Callable[[Any], Any] | None,
) -> Checkpoint:
    """A checkpoint trained here, or anyone's LoRA adapter."""
    folder, sidecar, adapter = files.folder, files.sidecar, files.adapter
    scoring, renderer = files.reading()
    config = read_config(folder, adapter)
    options = options or scoring.options(dtype_of(config), adapter is not None)
    options = replace(options, dtype=dtype or options.dtype)
    config_pad = config.get_text_config().pad_token_id
    published: dict[str, Any] = {}
    if adapter is not None:
        model, index = _load_adapter(files, adapter, options, renderer.pad_id, through)
        model = model if sidecar else _with_notes(model, renderer, config_pad)
        if files.prompt is not None or index is not None:
            published = {"layout": "a LoRA adapter", "prompt": files.prompt, "label": index}
    else:
        model = load_backbone(str(folder), None, options, renderer.pad_id, seed=None)
    length = scoring.max_length or min(max_positions(model.module) or 4096, 4096)
    table = position_table(model.module)
    if table is not None and length > table:
        note = f"sequences are truncated to the model's {table} positions, not to the {length} tokens of its recipe"
        model, length = replace(model, notes=(*model.notes, note)), table
    return Checkpoint(
        model,
        renderer,
        length,
        max_positions(model.module),
        sidecar=sidecar,
        where=files.where,
        weights=fingerprint_of(folder),
        published=published,
        config_pad=config_pad,
        scoring=scoring,
    )


def _load_published(published: Published, options: BackboneOptions | None, dtype: str | None) -> Checkpoint:
    options = options or published.options
    options = replace(options, dtype=dtype or options.dtype)
    config_pad = published.config.get_text_config().pad_token_id
    reading = published.reading
    renderer: Renderer
    if published.layout is PAIR_RM:
        (model, renderer), length = published.load_pairs(options), MAX_LENGTH
    elif published.layout is ENCODER:
        model, renderer = published.load_encoder(options)
        length = longest(model.module, renderer.tokenizer)
        reading = {**reading, "prompt": TEXT_PAIR} if renderer.reads_pairs else reading
    else:
        renderer = published.renderer()
        model = _with_notes(published.load(options, renderer.pad_id), renderer, config_pad, published.layout.prompt)
        length = min(max_positions(model.module) or 4096, published.layout.max_length or 4096)
    return Checkpoint(
        model,
        renderer,
        length,
        length if published.layout in (ENCODER, PAIR_RM) else max_positions(model.module),
        sidecar={},
        where=published.where,
        weights=fingerprint_of(published.folder),
        published=reading,
        config_pad=config_pad,
        layout=published.layout,
    )


def _with_notes(
    model: RewardModel, renderer: Renderer, config_pad: int | None, prompt: str | None = None
) -> RewardModel:
    """The model of others, with notes where its rewards are read otherwise than elsewhere.

    These are a pad token that is its end token, and tokens beside those of its chat template, unless it is read by the
    `prompt` of its card.
    """
    tokenizer, notes = renderer.tokenizer, []
    eos = tokenizer.eos_token_id
    if eos is not None and eos in (config_pad, tokenizer.pad_token_id):
        notes.append(
            f"its pad token is its end token ({eos}): rewards are read here at the last token, and elsewhere by those "
            "who look for the pad token"
        )
    if prompt is None and renderer.append_eos:
        notes.append(
            f"its chat template writes no end token: {tokenizer.eos_token!r} is appended, and the reward is read there"
        )
    if prompt is None and renderer.prepend_bos:
        notes.append(f"its chat template writes no {tokenizer.bos_token!r}, which its tokenizer does: it is prepended")
    return replace(model, notes=(*model.notes, *notes))


def _load_adapter(
    files: CheckpointFiles,
    config: dict[str, Any],
    options: BackboneOptions,
    pad_id: int,
    through: Callable[[Any], Any] | None,
) -> tuple[RewardModel, int | None]:
    """The model of an adapter, and the label that is its reward, where its head has several."""
    folder = files.folder
    check_weights(folder)
    shapes = read_shapes(folder)
    labels = next(shape[0] for name, shape in shapes.items() if name.endswith(f".{HEAD}.weight"))
    names = read_object(folder / "config.json").get("id2label") if (folder / "config.json").exists() else None
    index = label_index(files.where, labels, names or {}, files.label)
    base = config["base_model_name_or_path"]
    model = load_backbone(base, config.get("revision"), options, None, seed=0)  # the adapter brings its own head
    make_room(model.module, shapes, labels)
    set_pad(model.module.config, pad_id, base)
    module = through(model.module) if through is not None else model.module
    module = attach_adapter(module, folder, base)
    if index is not None:
        keep_label(module, index)
    return replace(model, module=module), index
