"""Reward models on disk: a plain sequence-classification folder or its LoRA adapter, and `rmtrain.json` beside it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.adapters import keep_label, make_room, prepare_adapters
from rmtrain.model.config_check import require_bounded
from rmtrain.model.devices import is_out_of_memory
from rmtrain.model.digests import verify_files
from rmtrain.model.forward import HEAD
from rmtrain.model.positions import position_table
from rmtrain.model.published.encoder import TEXT_PAIR, EncoderModel
from rmtrain.model.published.layouts import ENCODER, PAIR_RM
from rmtrain.model.published.load import Published, find_published, label_index
from rmtrain.model.published.pair_rm import MAX_LENGTH, PairRenderer
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone, load_config, set_pad
from rmtrain.model.saving import check_weights
from rmtrain.model.sidecar import Scoring, read_scoring
from rmtrain.model.weights import (
    ADAPTER,
    SIDECAR,
    download,
    fingerprint_of,
    fingerprint_read,
    read_adapter,
    read_json,
    read_tensors,
    require_files,
)

_OTHER = "the checkpoint is damaged or of another model"


@dataclass(frozen=True)
class Checkpoint:
    """A reward model as loaded for scoring.

    Attributes:
        model: ready to run.
        renderer: how conversations become tokens.
        max_length: tokens of prompt and one completion.
        sidecar: the content of rmtrain.json, a record of how it was made; empty for other people's checkpoints.
        where: the folder or hub id.
        fingerprint: digest of its weights' files, and of how they are read.
        published: how other people's were read: layout, prompt and label.
        config_pad: the pad id in its config as it lies there, or in its base's, before the renderer's replaced it.
        weights: digest of its weights' files alone.
        scoring: how it is scored: as rmtrain.json says, or by default.
    """

    model: RewardModel
    renderer: Renderer
    max_length: int
    sidecar: dict[str, Any]
    where: str
    fingerprint: str
    published: dict[str, Any] = field(default_factory=dict)
    config_pad: int | None = None
    weights: str = ""
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it is run."""
        contract = self.scoring.contract
        undated = contract and "date" not in contract and "date" in self.renderer.contract()
        older = ("which date it was given in training is not recorded in this checkpoint",) if undated else ()
        return (*self.model.notes, *self.renderer.notes, *older)

    def need_rewards(self, what: str) -> None:
        """Raises InputError for a model that compares completions and gives them no rewards."""
        if isinstance(self.renderer, PairRenderer):
            raise InputError(
                f"{self.where} is PairRM, which compares two completions and gives none a reward: {what} needs rewards",
                "use eval, or rewardbench on rewardbench-1 or judgebench",
            )

    def need_decoder(self, what: str) -> None:
        """Raises InputError for encoders, and for a model that gives no rewards."""
        self.need_rewards(what)
        if isinstance(self.model, EncoderModel):
            raise InputError(
                f"{self.where} is an encoder ({type(self.model.module).__name__}): {what} needs a decoder",
                "use eval, score, compare, or rewardbench without it",
            )


def load_checkpoint(
    where: str,
    *,
    revision: str | None = None,
    options: BackboneOptions | None = None,
    dtype: str | None = None,
    device: Any = None,
    prompt: str | None = None,
    label: str | None = None,
    through: Callable[[Any], Any] | None = None,
    verify: bool = True,
) -> Checkpoint:
    """Load a reward model for scoring: an adapter folder, a model folder, or a hub id.

    Args:
        where: folder or hub id.
        revision: of the hub id.
        options: how to run it; None is as it was trained, or in the dtype of its config.
        dtype: in place of theirs.
        device: where to put it; None leaves it on the CPU.
        prompt: of other people's models, see `make_renderer`.
        label: of other people's models with several, the one that is the reward.
        through: applied to an adapter's base before the adapter is put on it.
        verify: check its files against the digests that were recorded with them.

    Raises:
        CheckpointError: it is no reward model, is damaged, or renders differently from its contract.
        InputError: a prompt or a label that is not there, or of a model that brings its own.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = download(where, revision)
    require_files(folder)
    if verify:
        verify_files(folder)
    sidecar = read_json(folder / SIDECAR) if (folder / SIDECAR).exists() else {}
    if not sidecar and not (folder / ADAPTER).exists():
        return _load_published(find_published(where, folder, prompt, label), options, dtype, device)
    if sidecar and (label is not None or prompt is not None):
        named = "prompt" if label is None else "label"
        raise InputError(f"{where}: a {named} is for models that were not trained here", f"leave out --{named}")
    adapter = read_adapter(folder) if (folder / ADAPTER).exists() else None
    if adapter is not None and not adapter.get("base_model_name_or_path"):
        raise CheckpointError(f"{folder / ADAPTER} names no base model", "write base_model_name_or_path into it")
    scoring = read_scoring(sidecar, folder / SIDECAR) if sidecar else Scoring()
    renderer = make_renderer(str(_tokenizer_place(folder, None if sidecar else adapter)), prompt)
    if scoring.contract is not None:
        renderer = renderer.check_contract(scoring.contract, where)
    options = options or scoring.options(dtype_in_config(folder, adapter), adapter is not None)
    options = replace(options, dtype=dtype or options.dtype)
    config_pad = load_config(*_config_place(folder, adapter)).get_text_config().pad_token_id
    published: dict[str, Any] = {}
    if adapter is not None:
        model, index = _load_adapter(where, folder, adapter, options, renderer.pad_id, label, through)
        model = model if sidecar else _told_of_pad(model, renderer, config_pad)
        if prompt is not None or index is not None:
            published = {"layout": "a LoRA adapter", "prompt": prompt, "label": index}
    else:
        model = load_backbone(str(folder), None, options, renderer.pad_id, seed=None)
    _place(model, where, options, device)
    length = scoring.max_length or min(_positions(model), 4096)
    room = position_table(model.module)
    if room is not None and length > room:
        told = f"it has {room} positions: sequences are truncated to them, not to the {length} tokens of its recipe"
        model, length = replace(model, notes=(*model.notes, told)), room
    weights = fingerprint_of(folder)
    read = weights if label is None else fingerprint_read(weights, published)
    return Checkpoint(model, renderer, length, sidecar, where, read, published, config_pad, weights, scoring)


def _load_published(found: Published, options: BackboneOptions | None, dtype: str | None, device: Any) -> Checkpoint:
    options = options or found.options
    options = replace(options, dtype=dtype or options.dtype)
    config_pad = found.config.get_text_config().pad_token_id
    reading = found.reading
    model: RewardModel
    renderer: Renderer
    if found.layout is PAIR_RM:
        (model, renderer), length = found.load_pairs(options), MAX_LENGTH
    elif found.layout is ENCODER:
        model, renderer = found.load_encoder(options)
        length = model.longest(renderer.tokenizer)
        reading = {**reading, "prompt": TEXT_PAIR} if renderer.reads_pairs else reading
    else:
        renderer = found.renderer()
        model = _told_of_pad(found.load(options, renderer.pad_id), renderer, config_pad)
        length = min(_positions(model), found.layout.max_length or 4096)
    _place(model, found.where, options, device)
    weights = fingerprint_of(found.folder)
    read = fingerprint_read(weights, reading)
    return Checkpoint(model, renderer, length, {}, found.where, read, reading, config_pad, weights)


def _told_of_pad(model: RewardModel, renderer: Renderer, config_pad: int | None) -> RewardModel:
    """The model of others, with a note where its pad token is its end token."""
    eos = renderer.tokenizer.eos_token_id
    if eos is None or eos not in (config_pad, renderer.tokenizer.pad_token_id):
        return model
    note = (
        f"its pad token is its end token ({eos}): rewards are read here at the last token, and elsewhere by those who "
        "look for the pad token"
    )
    return replace(model, notes=(*model.notes, note))


def _place(model: RewardModel, where: str, options: BackboneOptions, device: Any) -> None:
    model.module.eval()
    if device is not None and options.quantization == "none":
        model.module.to(device)
    check_finite(model.module, where)


def dtype_in_config(folder: Path, adapter: dict[str, Any] | None) -> str:
    """The dtype of a model's config, or of its base's."""
    dtype = str(load_config(*_config_place(folder, adapter)).dtype).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def _config_place(folder: Path, adapter: dict[str, Any] | None) -> tuple[str, str | None]:
    """Where a checkpoint's config is, and of which revision: beside an adapter only earlier versions wrote one."""
    if adapter is not None and not (folder / "config.json").exists():
        return adapter["base_model_name_or_path"], adapter.get("revision")
    return str(folder), None


def _tokenizer_place(folder: Path, adapter: dict[str, Any] | None) -> Path:
    """The folder of the tokenizer: an adapter without one has that of its base."""
    if adapter is None or any(folder.glob("tokenizer*")):
        return folder
    base = adapter["base_model_name_or_path"]
    return Path(base) if Path(base).is_dir() else download(base, adapter.get("revision"), weights=False)


def _load_adapter(
    where: str,
    folder: Path,
    config: dict[str, Any],
    options: BackboneOptions,
    pad_id: int,
    label: str | None,
    through: Callable[[Any], Any] | None,
) -> tuple[RewardModel, int | None]:
    """The model of an adapter, and the label that is its reward, where its head has several."""
    check_weights(folder)
    shapes = {name: tuple(tensor.shape) for _, name, tensor in read_tensors(folder)}
    labels = next(shape[0] for name, shape in shapes.items() if name.endswith(f".{HEAD}.weight"))
    names = read_json(folder / "config.json").get("id2label") if (folder / "config.json").exists() else None
    index = label_index(where, labels, names or {}, label)
    base = config["base_model_name_or_path"]
    model = load_backbone(base, config.get("revision"), options, None, seed=0)  # the adapter brings its own head
    make_room(model.module, shapes, labels)
    set_pad(model.module.config, pad_id, base)
    module = through(model.module) if through is not None else model.module
    module = attach_adapter(module, folder, base)
    if index is not None:
        keep_label(module, index)
    return RewardModel(module, model.packing, model.notes, model.commit), index


def attach_adapter(module: Any, folder: Path, base: str, dropout: float | None = None) -> Any:
    """The PEFT model of a base and the adapter that lies in a folder; with a dropout, it is to be trained further.

    Raises:
        CheckpointError: names what does not fit.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    require_bounded(read_json(folder / ADAPTER), str(folder / ADAPTER))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            config = PeftConfig.from_pretrained(folder)
            if dropout is not None:
                config.lora_dropout = dropout
            module = PeftModel.from_pretrained(module, folder, config=config, is_trainable=dropout is not None)
    except Exception as error:  # misshapen, misnamed, misconfigured, damaged: each in its own way
        if is_out_of_memory(error):
            raise
        why = f"{ADAPTER} lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{folder}: the adapter does not fit its base {base}: {why}", _OTHER) from error
    expected = set(get_peft_model_state_dict(module, save_embedding_layers=False))
    found = {name for _, name, _ in read_tensors(folder)}
    if missing := sorted(expected - found):
        raise CheckpointError(f"{folder}: the adapter's file lacks {', '.join(missing[:5])}", _OTHER)
    if surplus := sorted(name for name in found - expected if "lora_" in name):
        raise CheckpointError(f"{folder}: its base {base} has no place for {', '.join(surplus[:5])}", _OTHER)
    prepare_adapters(module)
    return module


def check_finite(module: Any, where: str) -> None:
    """Refuse weights that are not finite, by name."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise CheckpointError(f"{where}: {name} is not finite", "the weights are damaged; use another checkpoint")


def _positions(model: RewardModel) -> int:
    told = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    return position_table(model.module) or int(told or 4096)
