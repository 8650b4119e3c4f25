"""How reward models were published: what their tensors are called, where the head is, and what text it was made for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmtrain.errors import CheckpointError
from rmtrain.model.forward import HEAD


@dataclass(frozen=True)
class CheckpointFormat:
    """One way in which the files of a reward model were published."""

    name: str
    ids: tuple[str, ...] = ()  # hub ids of the models published so
    head: str = HEAD  # the linear module that turns the last token's state into a reward
    bias: bool = False  # whether the head has one
    backbone: str | None = None  # transformers' name of the architecture; None takes that of the config
    prefixes: Mapping[str, str] | None = None  # prefixes of the backbone's tensors: published → transformers'
    ignored: str | None = None  # pattern of tensors on which no reward depends
    prompt: str | None = None  # name of its prompt; None is the tokenizer's own template
    tokenizer: str | None = None  # hub id of the tokenizer where none lies with the weights
    max_length: int | None = None  # most tokens of a sequence; None is what the backbone takes
    model_type: str | None = None  # the model_type of its config, where that is one of its own
    runner_prompt: str | None = None  # the prompt of RewardBench's runner, where that is another
    # where the runner found a row's score: by the `pad` id, before the `first_unk` (the first id of the tokenised unk
    # token), or by the `mask`
    runner_reads: Literal["pad", "first_unk", "mask"] = "pad"

    def theirs(self, name: str) -> str:
        """The published name of a tensor, for messages."""
        if name.startswith(f"{HEAD}."):
            return self.head + name.removeprefix(HEAD)
        for published, own in (self.prefixes or {}).items():
            if name.startswith(own):
                return published + name.removeprefix(own)
        return name

    def ours(self, name: str) -> str | None:
        """transformers' name of a published tensor; "" if no reward depends on it, None if it has no place."""
        if name in (f"{self.head}.weight", f"{self.head}.bias"):
            return HEAD + name.removeprefix(self.head)
        if self.ignored and re.search(self.ignored, name):
            return ""
        if self.prefixes is None:
            return name
        for published, own in self.prefixes.items():
            if name.startswith(published):
                return own + name.removeprefix(published)
        return None


OTHER_LAYOUT = "this layout is not known here; a transformers model for sequence classification calls its head score"
_LM_HEAD = r"^(model\.)?(lm_head|embed_out)\."

PLAIN = CheckpointFormat("a sequence-classification model", ignored=_LM_HEAD)
ENCODER = CheckpointFormat("an encoder with a classification head", head="classifier")
ENCODER_TYPES = (  # in the config of encoders whose own forward is read
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
PAIR_RM = CheckpointFormat("PairRM", ("llm-blender/PairRM-hf",), head="head_layer.4", bias=True, backbone="deberta-v2")
LAYOUTS = (
    CheckpointFormat(
        "Starling-RM-7B-alpha",
        ("berkeley-nest/Starling-RM-7B-alpha",),
        head="v_head",
        backbone="llama",
        prefixes={"transformer.": "model.", "model.model.": "model."},  # one backbone under two names
        ignored=_LM_HEAD,
        prompt="starling-7b",
        tokenizer="meta-llama/Llama-2-7b-chat-hf",
        max_length=2048,
        runner_prompt="starling-7b-fastchat",
        runner_reads="first_unk",
    ),
    CheckpointFormat(
        "Starling-RM-34B",
        ("Nexusflow/Starling-RM-34B",),
        head="v_head",
        backbone="llama",
        prefixes={"transformer.": "model."},
        prompt="starling-34b",
        tokenizer="01-ai/Yi-34B-Chat",
        runner_prompt="starling-34b-fastchat",
        runner_reads="first_unk",
    ),
    CheckpointFormat(
        "UltraRM-13b",
        ("openbmb/UltraRM-13b",),
        head="regression_head",
        backbone="llama",
        prefixes={"model.": "model."},
        prompt="ultrarm",
        runner_prompt="ultrarm-fastchat",
        runner_reads="mask",
    ),
    CheckpointFormat(
        "Ziya-LLaMA-7B-Reward",
        ("IDEA-CCNL/Ziya-LLaMA-7B-Reward",),
        head="value_head",
        bias=True,
        backbone="llama",
        prefixes={"model.": "model."},
        prompt="ziya",
        runner_prompt="ziya-fastchat",
        runner_reads="mask",
    ),
    CheckpointFormat(
        "oasst-rm-pythia",
        ("OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5", "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1"),
        head="out_proj",
        bias=True,
        backbone="gpt_neox",
        prefixes={"gpt_neox.": "gpt_neox."},
        prompt="oasst",
        model_type="gpt_neox_reward_model",
        runner_reads="mask",
    ),
    PAIR_RM,
)


def recognise(where: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> CheckpointFormat:
    """The format of a checkpoint, by its head's name, by the hub id or folder `where`, or by the content of its
    config.json.

    Raises:
        CheckpointError: several fit, which differ in the prompt, or the head's name fits and the architecture does not.
    """
    if f"{HEAD}.weight" in tensors:
        return PLAIN
    named = next((layout for layout in LAYOUTS if is_named(layout, where, folder, config)), None)
    if named is not None:
        return named
    fitting = [layout for layout in LAYOUTS if f"{layout.head}.weight" in tensors]
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise CheckpointError(
            f"{where}: {names} have a head called {fitting[0].head}, and read different prompts",
            "let the folder have the name of the model's repository",
        )
    if not fitting and config.get("model_type") in ENCODER_TYPES:
        return ENCODER
    for layout in fitting:
        if (kind := config.get("model_type", layout.backbone)) != layout.backbone:
            raise CheckpointError(
                f"{where}: its head is called {layout.head} as that of {layout.name}, but its config is of "
                f"{kind!r}, and not of {layout.backbone!r}",
                OTHER_LAYOUT,
            )
    return fitting[0] if fitting else PLAIN


def is_named(layout: CheckpointFormat, where: str, folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has this format by its hub id, its folder's name or its config, whatever its tensors."""
    called = {where.lower(), *(part.lower() for part in folder.resolve().parts[-3:])}  # models--org--name/snapshots/…
    known = {name.lower() for hub_id in layout.ids for name in _folder_names(hub_id)}
    return bool(called & known) or (layout.model_type is not None and config.get("model_type") == layout.model_type)


def _folder_names(hub_id: str) -> tuple[str, str, str]:
    return hub_id, hub_id.partition("/")[2], f"models--{hub_id.replace('/', '--')}"
