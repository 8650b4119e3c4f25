"""The files of a published reward model → a transformers model with the score head that the files hold."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from rmtrain.data.render import Renderer
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import CheckpointError, InputError, first_line
from rmtrain.json_values import JsonObject
from rmtrain.model.config_check import require_bounded
from rmtrain.model.forward import HEAD, with_mixin
from rmtrain.model.published.encoder import TEXT_PAIR, TextPairRenderer, encoder_batch, encoder_class, takes_types
from rmtrain.model.published.layouts import ENCODER, OTHER_LAYOUT, PAIR_RM, PLAIN, CheckpointFormat, is_named, recognise
from rmtrain.model.published.pair_rm import PairModel, PairRenderer
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.reward_model import (
    NO_HEAD,
    BackboneOptions,
    RewardModel,
    choose_packing,
    dtype_of,
    load_config,
    load_module,
    make_ready,
    reward_model_class,
    set_pad,
)
from rmtrain.model.weights import fetch, read_object, read_tensors

_OTHER = "the checkpoint is damaged, or of another model"
_OWN_KEYS = ("model_type", "architectures", "auto_map", "num_labels", "id2label", "label2id")


class _BiasedHead:
    """Mixin that gives a sequence-classification model a score head with a bias."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.score = nn.Linear(self.score.in_features, 1)  # type: ignore[has-type]


@dataclass(frozen=True)
class Published:
    """A published reward model, before its model is built."""

    where: str  # folder or hub id, as the user named it
    folder: Path
    layout: CheckpointFormat  # the format in which it was published
    config: PretrainedConfig  # the backbone's
    tensors: dict[str, Tensor]  # its weights, by their names in the files
    prompt: str | None  # name of a prompt, or a Jinja template; None is the tokenizer's own chat template
    label: int | None  # the label whose logit is the reward, counted from 0; None where the head has only one

    @property
    def reading(self) -> JsonObject:
        """How it was read, as results record it."""
        return {"layout": self.layout.name, "prompt": self.prompt, "label": self.label}

    @property
    def options(self) -> BackboneOptions:
        """Loading options: the dtype of its config; float32 for an encoder, which is small."""
        return BackboneOptions("float32" if self.layout is ENCODER else dtype_of(self.config))

    def renderer(self) -> Renderer:
        """The renderer of its conversations.

        Raises:
            InputError: there is no such prompt, or there is neither a prompt nor a chat template.
            CheckpointError: no tokenizer lies beside the weights, and none can be fetched.
        """
        stand_in = self.layout.tokenizer
        if stand_in is None or any(self.folder.glob("tokenizer.*")):
            return make_renderer(str(self.folder), self.prompt)
        try:
            return make_renderer(str(fetch(stand_in, None, weights=False)), self.prompt)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.where} comes without a tokenizer, and that of {stand_in} can't be fetched: {error.message}",
                f"ask for access to {stand_in}, or put its tokenizer files beside the weights",
            ) from error

    def load(self, options: BackboneOptions, pad_id: int) -> RewardModel:
        """Build the backbone and its head.

        Raises:
            CheckpointError: names the tensors that are missing, have a wrong shape, or are unexpected.
        """
        set_pad(self.config, pad_id, self.where)
        model_class = reward_model_class(self.config)
        if self.layout.bias or f"{HEAD}.bias" in self.tensors:
            model_class = with_mixin(_BiasedHead, model_class)
        packing, notes = choose_packing(model_class, self.config, options.packing)
        tensors = self._renamed()
        module, info = load_module(model_class, self.where, None, self.config, options, packing, tensors=tensors)
        if not isinstance(getattr(module, HEAD, None), nn.Linear):
            raise InputError(
                f"{self.where}: {type(module).__name__} has no linear score head called {HEAD}",
                "it is no decoder with one: choose another model",
            )
        self._check_names(info)
        if self.layout is not PLAIN:
            notes = [*notes, f"read as {self.layout.name}, with the prompt {self.prompt}"]
        return RewardModel(make_ready(module, options, packing), packing, tuple(notes))

    def load_pairs(self, options: BackboneOptions) -> tuple[RewardModel, PairRenderer]:
        """Build PairRM, whose logits compare the two answers of a pair, and the renderer of its pairs.

        Raises:
            CheckpointError: as `load`, or the tokenizer is of another model.
        """
        tokenizer = load_tokenizer(str(self.folder), chat_template="{{ messages }}")  # required, and never used
        renderer = PairRenderer.of_pairs(tokenizer, self.config)
        module, info = load_module(PairModel, self.where, None, self.config, options, "none", tensors=self.tensors)
        self._check_names(info)
        module.compute_dtype = getattr(torch, options.dtype)
        return RewardModel(module, "none", ("read as PairRM: it compares, and gives no rewards",)), renderer

    def load_encoder(self, options: BackboneOptions) -> tuple[RewardModel, TextPairRenderer]:
        """Build an encoder with transformers' own head and forward, and the renderer of its inputs.

        Raises:
            CheckpointError: as `load`.
            InputError: there is no such prompt, or the tokenizer can't be loaded.
        """
        renderer = TextPairRenderer.of_encoder(str(self.folder), self.prompt, self.config)
        model_class = encoder_class(self.config)
        module, info = load_module(model_class, self.where, None, self.config, options, "none", tensors=self.tensors)
        self._check_names(info)
        module.compute_dtype, module.label = getattr(torch, options.dtype), self.label or 0
        read = TEXT_PAIR if renderer.reads_pairs else "with a chat template"
        note = f"read as an encoder, {read}; it takes padded rows"
        make_batch = partial(encoder_batch, types=takes_types(self.config))
        return RewardModel(module, "none", (note,), make_batch=make_batch), renderer

    def _check_names(self, info: dict[str, Any]) -> None:
        theirs = self.layout.theirs
        if missing := sorted(map(theirs, info["missing_keys"])):
            raise CheckpointError(f"{self.where}: the weights lack {', '.join(missing[:5])}", _OTHER)
        for name, shape, expected in sorted(info["mismatched_keys"]):
            shapes = f"{tuple(shape)}, not {tuple(expected)}"
            raise CheckpointError(f"{self.where}: {theirs(name)} has the shape {shapes}", _OTHER)
        if surplus := sorted(map(theirs, info["unexpected_keys"])):
            raise CheckpointError(
                f"{self.where}: unexpected weights for {self.layout.name}: {', '.join(surplus[:5])}", _OTHER
            )

    def _renamed(self) -> dict[str, Tensor]:
        """The tensors by the names of transformers, with the head cut to the label."""
        renamed: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            own = self.layout.ours(name)
            if own is None:
                raise CheckpointError(f"{self.where}: unexpected weights for {self.layout.name}: {name}", _OTHER)
            if own in renamed and not _same(renamed[own], tensor):
                raise CheckpointError(f"{self.where}: {name} differs from {self.layout.theirs(own)}", _OTHER)
            if own:
                renamed[own] = tensor
        for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
            if name in renamed and self.label is not None:
                renamed[name] = renamed[name][self.label : self.label + 1].clone()
        return renamed


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape) == (b.data_ptr(), b.shape) or torch.equal(a, b)  # pickles keep what is shared


def find_published(where: str, folder: Path, prompt: str | None = None, label: str | None = None) -> Published:
    """Recognise a published reward model by its files.

    Args:
        prompt: see `make_renderer`; None is that of the model.
        label: name or index of the label whose logit is the reward; needed where there are several.

    Raises:
        CheckpointError: it can't be read, gives no rewards, or has several labels of which none is named.
        InputError: an architecture that transformers does not know, or a label that is not there.
    """
    values = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    tensors: dict[str, Tensor] = {}
    for file, name, tensor in read_tensors(folder):
        if name in tensors:
            raise CheckpointError(f"{file}: {name} is in two files", _OTHER)
        tensors[name] = tensor
    layout = recognise(where, folder, values, tensors)
    if not tensors:
        below = sorted({path.parent.name for path in folder.glob("*/*.safetensors")})
        hint = f"name one of the folders in it: {', '.join(below)}" if below else "give a folder with a model's files"
        raise CheckpointError(f"{where}: no weights could be loaded: the folder has no file of them", hint)
    if not values and layout.backbone is not None:
        values = _stand_in_values(where, layout, tensors)
    config = load_config(str(folder), None) if layout.backbone is None else _config(where, layout, values)
    heads = (f"{layout.head}.weight", f"{layout.head}.out_proj.weight")  # the second is RoBERTa's kind of head
    head = next((tensors[name] for name in heads if name in tensors), None)
    if head is None:
        _refuse_headless(where, layout, tensors)
    if layout is PAIR_RM:
        if prompt is not None or label is not None:
            raise InputError(f"{where} is PairRM, which has one prompt and no labels", "leave out --prompt and --label")
        return Published(where, folder, layout, config, tensors, None, None)
    if layout is ENCODER:
        config.num_labels = len(head)  # all stay in the model, which gives the logit of one
    if layout.prompt and not prompt and _has_template(folder) and not is_named(layout, where, folder, values):
        raise InputError(
            f"{where}: its head is called {layout.head} as that of {layout.name}, which reads the prompt "
            f"{layout.prompt}, but its tokenizer has a chat template of its own",
            f"say which one it was trained with: --prompt {layout.prompt}, or the template as a .jinja file",
        )
    index = label_index(where, len(head), values.get("id2label") or {}, label)
    return Published(where, folder, layout, config, tensors, prompt or layout.prompt, index)


def _has_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (
        config.exists() and bool(read_object(config).get("chat_template"))
    )


def _refuse_headless(where: str, layout: CheckpointFormat, tensors: dict[str, Tensor]) -> NoReturn:
    """Say that there is no head, and which tensors may be one under another name."""
    others = sorted(name for name, tensor in tensors.items() if tensor.ndim == 2 and len(tensor) == 1)
    found = f", but {', '.join(others[:3])}" if others else ""
    hint = "choose an encoder with a classification head" if layout is ENCODER else OTHER_LAYOUT if others else NO_HEAD
    raise CheckpointError(f"{where}: the weights have no score head ({layout.head}.weight){found}", hint)


def _stand_in_values(where: str, layout: CheckpointFormat, tensors: dict[str, Tensor]) -> JsonObject:
    """The config of the repository that a checkpoint without one was made for, in the dtype of its own weights."""
    lacking = f"{where} comes without a config.json"
    if layout.tokenizer is None:
        raise CheckpointError(lacking, f"put that of {layout.ids[0]} beside the weights")
    try:
        values = read_object(fetch(layout.tokenizer, None, weights=False) / "config.json")
    except CheckpointError as error:
        raise CheckpointError(
            f"{lacking}, and that of {layout.tokenizer} can't be fetched: {error.message}",
            f"ask for access to {layout.tokenizer}, or put its config.json beside the weights",
        ) from error
    values.pop("dtype", None)  # of its own weights
    widest = max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize)
    return {**values, "torch_dtype": str(widest).removeprefix("torch.")}


def _config(where: str, layout: CheckpointFormat, values: JsonObject) -> PretrainedConfig:
    """The backbone's config; the class that the published one names is not transformers' own."""
    if values.get("pooling", "last") != "last":
        raise CheckpointError(f"{where}: its config pools by {values['pooling']!r}, not by the last token", _OTHER)
    require_bounded(values, where)
    kept = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    try:
        return CONFIG_MAPPING[str(layout.backbone)].from_dict({**kept, "num_labels": 1})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its config.json can't be read: {first_line(error)}", _OTHER) from error


def label_index(where: str, labels: int, names: dict[str, str], label: str | None) -> int | None:
    """The index of the label named; None for a head with one label.

    Raises:
        CheckpointError: several labels, and none is named.
        InputError: there is no such label.
    """
    known = [str(names.get(str(index), f"LABEL_{index}")) for index in range(labels)]
    if label is None:
        if labels == 1:
            return None
        raise CheckpointError(
            f"{where}: its score head has {labels} labels, a reward has one",
            f"name the label that is the reward, or its number from 0, with --label: {', '.join(known[:20])}",
        )
    if label in known:
        return known.index(label)
    if label.isdecimal() and int(label) < labels:
        return int(label)
    raise InputError(f"{where}: there is no label {label!r}", f"it has {', '.join(known[:20])}")
