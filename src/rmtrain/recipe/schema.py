"""The recipe: one frozen, validated value that describes a whole run.

All defaults are in this file and in data_schema.py. Neither may import torch.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.rules import CONFLICT, conflicts
from rmtrain.recipe.section import (
    FOLDER_NAME_PATTERN,
    MOST,
    Coefficient,
    Decay,
    Fraction,
    Interval,
    NonEmpty,
    PositiveInt,
    Rate,
    Section,
)


class ModelSection(Section):
    """The backbone and how it runs."""

    name: NonEmpty
    """Hub id or folder of the base model, or of an existing reward model, whose score head is then kept."""
    revision: str | None = None
    """Branch, tag or commit of the hub id; null is the default branch. The manifest pins the commit."""
    chat_template: str | None = None
    """Jinja text, a .jinja file, or `raw` (prompt, completion, end token); replaces the tokenizer's own template."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the backbone's weights and arithmetic; auto is the fastest on the machine at hand: bfloat16 on GPUs that
    have it and on CPUs that are fast in it, else float32. The score head and the rewards are always float32."""
    compile: bool | Literal["auto"] = False
    """Compile each decoder layer for training; auto does so on CPUs where a run is long enough to win back the time.
    Not with gradient_checkpointing: selective, zero3 or int8."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """bitsandbytes quantisation of the frozen base; needs a lora section."""
    dropout: bool = False
    """Apply the dropout of the base's config in training; false keeps only lora.dropout."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation for packing: none, the only packing with a choice; auto leaves it to transformers."""
    packing: Literal["shared_prompt", "padding_free", "none"] = "shared_prompt"
    """shared_prompt: each prompt goes through the backbone once per group; padding_free: once per completion, without
    padding; none: padded rows."""


class LoraSection(Section):
    """Low-rank adapters (arXiv 2106.09685). Leave the section out for full fine-tuning."""

    rank: Annotated[int, Field(ge=1, le=2**16)] = 32
    """Rank r of the adapters."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    """Numerator of the adapters' scale alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input. Above 0 it costs memory and time; a shared prompt has one mask for all its
    completions."""
    targets: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] = "all-linear"
    """Layers that get an adapter: all-linear (all of the backbone), a list of names, or a regular expression for whole
    names, such as `.*layers\\.[0-9]+\\.self_attn\\.[qv]_proj`."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353)."""


class LossSection(Section):
    """What training minimises."""

    objective: Literal["bradley_terry", "scaled", "hinge", "norm_bt", "plackett_luce", "ordinal", "regression"] = (
        "bradley_terry"
    )
    """The training objective; docs/training.md has the formula, the paper and the settings of each."""
    average_over: Literal["groups", "preferences"] = "groups"
    """What the loss of a step is the mean over: every prompt weighs the same (groups), or every preference, so that a
    prompt weighs as much as it has preferences."""
    centering: Coefficient = 0.0
    """Coefficient of (r_better + r_worse)^2, which keeps rewards near 0 (arXiv 2312.09244); 0 is off."""
    margin: Coefficient = 0.0
    """This times the score gap is subtracted from the reward gap in the sigmoid (arXiv 2307.09288, eq. 2); 0 is off."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is stated the wrong way round; 0 is off."""
    gap_unit: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """For objective scaled: the score gap at which a preference weighs 1."""
    weight_range: Annotated[tuple[Coefficient, Coefficient], Field(strict=False)] = (0.5, 3.0)
    """For objective scaled: the smallest and the largest weight of a preference."""
    grades: list[Annotated[float, Field(ge=0, le=1e6)]] = []
    """For objective ordinal: the score gaps at which a new grade of preference begins, ascending."""
    sum_to_zero: Coefficient = 0.0
    """Coefficient of the squared mean reward of the step (arXiv 2505.07271); 0 is off. Costs one more forward pass."""
    length_decorrelation: Coefficient = 0.0
    """Coefficient of the squared correlation of reward and length in the step; 0 is off. Costs the same."""
    text_loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share a of a text loss (arXiv 2406.10216): (1 - a) * objective + a * negative log-likelihood, in nats a token, of
    the better completion through the base's frozen language head; 0 is off."""


class OptimSection(Section):
    """Optimiser, schedule and batch."""

    learning_rate: Rate = 5e-5
    """Peak learning rate of the adapters, or of the backbone in full fine-tuning."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of the score head; null is learning_rate."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """Passes over the training groups; may be a fraction."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps; null trains all epochs."""
    global_batch_size: PositiveInt = 64
    """Groups per optimiser step, over all processes. How many micro-batches are accumulated follows from it."""
    tokens_per_microbatch: PositiveInt | None = 16384
    """Maximum tokens per forward pass on a process (a longer group goes alone); null limits by `microbatch_size`."""
    microbatch_size: PositiveInt | None = None
    """Maximum groups in a micro-batch; null limits by tokens only."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw"
    """AdamW from torch (fused), or from bitsandbytes."""
    # not strict, since YAML has lists and no tuples; the two numbers stay strict
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: Coefficient = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """Gradients are clipped to this norm."""
    gradient_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Activations recomputed in the backward pass: none; selective: all but matrix products and attention, at little
    cost; full: all but each layer's input, for about a third more time. auto chooses by the GPUs' free memory: none if
    the run fits, with smaller micro-batches than `tokens_per_microbatch` where it must; otherwise full."""
    activation_offloading: bool = False
    """Keep the remaining activations in host memory; best with gradient_checkpointing: full."""


class DistributedSection(Section):
    """How the work is spread over processes."""

    strategy: Literal["auto", "ddp", "zero2", "zero3", "fsdp"] = "auto"
    """How weights, gradients and optimiser state are sharded. auto takes the first of ddp (nothing sharded), zero2
    and zero3 that fits the GPUs' free memory; fsdp is FSDP2."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep the optimiser's state (and with zero3 or fsdp the parameters) in host memory."""
    deepspeed_config: str | None = None
    """Path of a DeepSpeed JSON file that replaces the one made from this recipe."""
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600)] = 30.0
    """The run ends if its processes wait longer than this for each other."""


class EvaluationSection(Section):
    """Validation during training, and the splits scored after it."""

    every: Interval = 0.25
    """Time between validations: from 1 up in steps, below 1 as a share of the run; 0 is never."""
    limit: PositiveInt | None = None
    """Validation groups used during training; null is all. The figures after training always use all."""
    select: Literal["accuracy", "mean_accuracy", "loss", "last"] = "accuracy"
    """The checkpoint that becomes the final model: the one with the best validation accuracy (the lower loss breaks a
    tie), the best mean of the accuracies of a mixture's entries, the lowest validation loss, or the last one."""
    stop_after: PositiveInt | None = None
    """Stop training after this many validations in a row without an improvement; null is never."""
    splits: list[Literal["validation", "test"]] = ["validation", "test"]
    """Splits scored after training."""
    tokens_per_batch: PositiveInt = 16384
    """Maximum tokens per forward pass when scoring."""


class TrackingSection(Section):
    """Where metrics are logged besides the run folder."""

    log_every: PositiveInt = 1
    """Steps between log lines."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; never prompts, and sends nothing unless online."""
    wandb_project: NonEmpty = "rmtrain"
    """Project of the wandb run."""


class RunSection(Section):
    """The run folder, the seed and the checkpoints."""

    folder: NonEmpty = "runs"
    """Parent of the run folders."""
    name: Annotated[str, StringConstraints(pattern=FOLDER_NAME_PATTERN)] | None = None
    """First part of the run folder's name; null is the recipe's file name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds the score head, the adapters and the order of the data."""
    save_every: Interval = 0.25
    """Time between checkpoints: from 1 up in steps, below 1 as a share of the run; 0 saves only the last. Every
    validation also saves one."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=MOST)] = 2
    """Newest checkpoints to keep, besides the best one."""


class Recipe(Section):
    """Everything about a run."""

    model: ModelSection
    """The backbone and how it runs."""
    lora: LoraSection | None = None
    """Low-rank adapters; null is full fine-tuning."""
    data: DataSection
    """Where the preferences come from and which are used."""
    loss: LossSection = LossSection()
    """The training objective."""
    optim: OptimSection = OptimSection()
    """Optimiser, schedule and batch."""
    distributed: DistributedSection = DistributedSection()
    """How the work is spread over processes."""
    evaluation: EvaluationSection = EvaluationSection()
    """Validation during training, and the splits scored after it."""
    tracking: TrackingSection = TrackingSection()
    """Where metrics are logged."""
    run: RunSection = RunSection()
    """The run folder, the seed and the checkpoints."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Recipe":
        if broken := conflicts(self):
            what = "; ".join(f"{each.keys[0]}: {each.message}" for each in broken)
            raise PydanticCustomError(CONFLICT, "{what}", {"what": what, "broken": broken})
        return self
