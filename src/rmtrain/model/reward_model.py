"""Backbone + score head: any decoder that has a sequence-classification head in transformers.

The score head is always float32, and its initialisation is seeded.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rmtrain.data.hub import require_present
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import CheckpointError, InputError, first_line
from rmtrain.files import require_regular
from rmtrain.model import attention
from rmtrain.model.batch import Packing, pack
from rmtrain.model.config_check import require_bounded
from rmtrain.model.devices import is_out_of_memory
from rmtrain.model.forward import HEAD, RewardForward, with_mixin
from rmtrain.model.quantization import quantization_config
from rmtrain.model.weights import ADAPTER

NO_HEAD = "it is no reward model: train one from it, or read it as a policy with --reference or --reference-free"


def reward_model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The sequence-classification class of a config, with RewardForward mixed in under its own name.

    Raises:
        InputError: transformers has no such class.
    """
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"transformers has no sequence-classification head for the architecture {config.model_type!r}",
            "choose another model",
        )
    return with_mixin(RewardForward, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BackboneOptions:
    """How a backbone is loaded and run; the fields are those of the recipe's model section."""

    dtype: str = "bfloat16"
    quantization: str = "none"
    attention: str = "auto"
    packing: Packing = "shared_prompt"


@dataclass(frozen=True)
class RewardModel:
    """A reward model ready to run."""

    module: Any  # the model, or the PEFT model around it
    packing: Packing  # how batches are laid out; `none` where the model can't be packed
    notes: tuple[str, ...] = ()  # lines for the user about loading and packing
    commit: str | None = None  # the hub commit of the weights; None for a local folder
    # whether the weights are spread over processes, which then must run the same number of passes
    sharded: bool = False
    # (groups, packing, pad id) → the input of the module's forward
    make_batch: Callable[[Sequence[TokenizedGroup], Packing, int], Mapping[str, object]] = pack

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return cast(torch.device, next(self.module.parameters()).device)

    def batch(self, groups: Sequence[TokenizedGroup], pad_id: int) -> Mapping[str, object]:
        """Groups → the input of the module's forward."""
        return self.make_batch(groups, self.packing, pad_id)


def load_config(name: str, revision: str | None) -> PretrainedConfig:
    """Load a model's config from a folder or the hub.

    Raises:
        InputError: there is none, or it asks for remote code, quantised weights or a kernel.
    """
    require_present(name, revision, InputError)
    try:
        if Path(name).is_dir():
            require_regular(Path(name))
        require_bounded(PretrainedConfig.get_config_dict(name, revision=revision)[0], name)
        config = AutoConfig.from_pretrained(name, revision=revision, num_labels=1, trust_remote_code=False)
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError("its text_config is no config")
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises errors of any kind for a damaged config
        raise InputError(
            f"{name}: no model config could be loaded: {first_line(error)}",
            "a model is a folder or a hub id of an architecture that transformers knows; remote code is never run",
        ) from error
    _refuse_what_is_not_run(config, name)
    return config


def dtype_of(config: PretrainedConfig) -> str:
    """The dtype in a config; float32 unless it is bfloat16 or float16."""
    dtype = str(config.dtype).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def _refuse_what_is_not_run(config: PretrainedConfig, name: str) -> None:
    """Refuse a config that asks for quantised weights, or for another attention than torch's own."""
    adapter = (Path(name) / ADAPTER).exists()  # beside older adapters lies the config of their base as it was loaded
    for part in () if adapter else (config, config.get_text_config()):
        if quantised := getattr(part, "quantization_config", None):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise InputError(
                f"{name}: its config says that its weights are quantised ({method!r}), which can't be used here",
                "take the model as it was before quantisation; model.quantization: nf4 or int8 quantises it on loading",
            )
    if (asked := config._attn_implementation) not in (None, "eager", "sdpa"):
        raise InputError(
            f"{name}: its config asks for the attention implementation {asked!r}, which is not used here",
            "take attn_implementation out of its config.json; model.attention says which one runs",
        )


def hub_commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub model whose config was loaded just now; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None  # .../snapshots/<commit>/config.json


def load_backbone(
    name: str,
    revision: str | None,
    options: BackboneOptions,
    pad_id: int | None,
    seed: int | None,
    trainable: bool = False,
    on_meta: bool = False,
) -> RewardModel:
    """Load a base model or a whole reward model, with a float32 score head.

    Args:
        pad_id: written to the config, for programs that find the last token by it.
        seed: draws the score head where the weights have none; None refuses such weights.
        trainable: the backbone itself will be trained, so its weights are loaded in float32.
        on_meta: check everything, but read only the names and shapes of the weights.

    Raises:
        InputError: an architecture without a head.
        CheckpointError: weights that are missing, or a head with several labels.
    """
    config = load_config(name, revision)
    commit = hub_commit(name, revision)
    revision = commit or revision  # so that config and weights are of one commit, also if the branch moves now
    if pad_id is not None:
        set_pad(config, pad_id, name)
    model_class = reward_model_class(config)
    packing, notes = choose_packing(model_class, config, options.packing)
    module, info = load_module(model_class, name, revision, config, options, packing, trainable, on_meta=on_meta)
    for key, shape, expected in sorted(info["mismatched_keys"]):
        labels = f": its score head has {shape[0]} labels, a reward model has one" if key == f"{HEAD}.weight" else ""
        raise CheckpointError(
            f"{name}: {key} has the shape {tuple(shape)}, not {tuple(expected)}{labels}", "choose another checkpoint"
        )
    if not isinstance(getattr(module, HEAD, None), nn.Linear):
        raise InputError(
            f"{name}: {type(module).__name__} has no linear score head called {HEAD}: it is no decoder with one",
            "choose another model",
        )
    missing = sorted(info["missing_keys"])
    if [key for key in missing if not key.startswith(f"{HEAD}.")]:
        raise CheckpointError(
            f"{name}: the weights lack {', '.join(missing[:5])}", "the checkpoint is damaged or of another model"
        )
    if missing and seed is None:
        raise CheckpointError(f"{name}: the weights have no score head ({HEAD}.weight)", NO_HEAD)
    if missing:
        with torch.no_grad():
            getattr(module, HEAD).weight.copy_(drawn_head(getattr(module, HEAD).weight.shape, cast(int, seed)))
    return RewardModel(make_ready(module, options, packing), packing, tuple(notes), commit)


def make_ready(module: Any, options: BackboneOptions, packing: Packing) -> Any:
    """Set up a model after loading: float32 head, compute dtype, and the attention for its packing."""
    getattr(module, HEAD).float()  # transformers creates a missing head in the dtype of the other weights
    module.compute_dtype = getattr(torch, options.dtype)
    module.config.architectures = [type(module).__name__]  # the base's config names the base's class
    if packing != "none":
        module.set_attn_implementation(attention.NAME)
    return module


def load_module(
    model_class: type[PreTrainedModel],
    name: str,
    revision: str | None,
    config: PretrainedConfig,
    options: BackboneOptions,
    packing: Packing,
    trainable: bool = False,
    tensors: dict[str, Any] | None = None,
    on_meta: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Load a model with the dtype and quantisation of the options; returns it with transformers' loading info.

    The weights come from `tensors`, by transformers' names, or else from the files of the folder or hub id `name`.

    Raises:
        CheckpointError: no weights can be loaded.
    """
    dtype = getattr(torch, options.dtype)
    kwargs: dict[str, Any] = {"dtype": torch.float32 if trainable else dtype}
    if packing == "none" and options.attention != "auto":
        kwargs["attn_implementation"] = options.attention
    if options.quantization != "none":
        kwargs["quantization_config"] = quantization_config(options.quantization, dtype)
    if torch.cuda.is_available() and options.quantization != "none":
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    if on_meta:
        kwargs["device_map"] = "meta"
    place: dict[str, Any] = {"pretrained_model_name_or_path": name, "revision": revision}
    if tensors is not None:
        place = {"pretrained_model_name_or_path": None, "state_dict": tensors}
    with _quiet():
        try:
            return model_class.from_pretrained(  # type: ignore[no-any-return]
                **place, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except ImportError as error:  # of flash attention
            raise InputError(f"model.attention: {first_line(error)}", "set model.attention to auto") from error
        except Exception as error:  # transformers raises errors of any kind for damaged files
            if is_out_of_memory(error):
                raise
            pickled = isinstance(error, UnpicklingError)  # torch's message advises unsafe loading
            why = "its pickle is damaged or holds more than tensors" if pickled else first_line(error)
            raise CheckpointError(
                f"{name}: no weights could be loaded: {why}", "the checkpoint is incomplete or damaged"
            ) from error


def set_pad(config: PretrainedConfig, pad_id: int, name: str) -> None:
    """Write the pad id into a config before the model is built from it, so that a reloaded model is the same."""
    text = config.get_text_config()
    if pad_id >= text.vocab_size:
        raise InputError(
            f"{name}: the tokenizer's pad token {pad_id} lies outside of the model's vocabulary of {text.vocab_size}",
            "set the tokenizer's pad_token to a token that the model has, other than its eos_token",
        )
    text.pad_token_id = pad_id


def drawn_head(shape: Sequence[int], seed: int) -> torch.Tensor:
    """The weight of a new head, drawn from N(0, 1/(H+1)) for H inputs (arXiv 2009.01325).

    It is drawn on the CPU, so that it does not depend on the device.
    """
    drawn = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
    return drawn.div((shape[1] + 1) ** 0.5)


def choose_packing(
    model_class: type[PreTrainedModel], config: PretrainedConfig, wanted: Packing
) -> tuple[Packing, list[str]]:
    """The packing that a model supports, and a note where it differs from the one wanted."""
    obstacle = attention.packing_obstacle(model_class, config) if wanted != "none" else None
    if obstacle is None:
        return wanted, []
    return "none", [f"{model_class.__name__} is not packed: {obstacle}; it takes padded rows"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, which warns of a new head on every load; missing weights are checked here instead."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
