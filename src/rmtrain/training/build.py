"""From a recipe to the parts of its run: the plan, the Trainer's arguments, validation and checkpoints."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from trl import RewardConfig

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.data.token_report import IDENTICAL, OVER_LENGTH
from rmtrain.display import Display
from rmtrain.errors import DataError, InputError
from rmtrain.json_values import JsonObject
from rmtrain.model.batch import GroupSize, Packing
from rmtrain.model.devices import process_state
from rmtrain.model.host_memory import resident_memory
from rmtrain.model.positions import check_positions, require_fixed_rotation
from rmtrain.model.recompute import checkpointing_options
from rmtrain.model.reward_model import RewardModel, choose_packing, reward_model_class
from rmtrain.model.saving import saved_shapes
from rmtrain.model.sidecar import scoring_of
from rmtrain.model.start import base_name, start_config
from rmtrain.model.weights import stated_license
from rmtrain.recipe.schema import Recipe
from rmtrain.training.checkpointing import CheckpointWriter
from rmtrain.training.lifecycle import OpenRun
from rmtrain.training.memory import Sharding, TokenLoad
from rmtrain.training.memory_plan import MemoryPlan, least_free_memory
from rmtrain.training.objectives import READS, SOFT, UNWEIGHTED
from rmtrain.training.plan import TrainingPlan, interval_steps, plan_training, whole_steps
from rmtrain.training.selection import Selection, Validation, validation_groups
from rmtrain.training.strategies import require_strategy, strategy_arguments


class RunPlan(NamedTuple):
    """What is known of a run before its model is loaded."""

    batches: TrainingPlan
    packing: Packing
    memory: MemoryPlan
    sharding: Sharding
    reason: str  # for the sharding
    notes: list[str]  # on the packing and on long rows

    def under(self, recipe: Recipe) -> "RunPlan":
        """The plan with a recipe that has the same micro-batches."""
        memory = replace(self.memory, recipe=recipe)
        sharding, reason = memory.choose()
        return self._replace(memory=memory, sharding=sharding, reason=reason)


def plan_run(recipe: Recipe, splits: Mapping[str, ReadySplit], processes: int) -> RunPlan:
    """Plan a run's micro-batches, and choose its strategy, from the model's config alone.

    Raises:
        InputError: no such model, an architecture without a score head, rows too long for it, nothing to train on or
            to stop by, or a strategy that these processes can't run.
    """
    if len(splits["train"].tokens) == 0:
        raise _nothing_left(splits["train"], recipe)
    if recipe.evaluation.stop_after is not None and "validation" not in splits:
        raise InputError(
            "evaluation.stop_after: the data has no validation split", "add one (data.holdout), or leave it out"
        )
    _require_figures(recipe.loss.objective, splits["train"])
    _require_soft(recipe.loss.objective, splits["train"])
    _require_weights(recipe.loss.objective, splits["train"])
    config = start_config(recipe)
    lengths = [prefix + max(suffixes) for split in splits.values() for prefix, suffixes in split.tokens.lengths()]
    longest = max(lengths, default=0)
    require_fixed_rotation(config, longest)
    model_class = reward_model_class(config)
    beyond = check_positions(config, model_class, recipe.data.max_length, longest)
    packing, notes = choose_packing(model_class, config, recipe.model.packing)
    batches = make_plan(recipe, splits["train"], packing, processes)
    load, free = TokenLoad.of(recipe, batches, splits, packing), least_free_memory()
    memory = MemoryPlan(recipe, config, load, processes, free, resident_memory() if free is None else 0)
    sharding, reason = memory.choose()
    require_strategy(recipe, sharding.strategy, processes)
    return RunPlan(batches, packing, memory, sharding, reason, [*notes, *beyond])


def _nothing_left(split: ReadySplit, recipe: Recipe) -> DataError:
    dropped = split.tokens.report.dropped
    causes = ", ".join(f"{lost.preferences} are {cause}" for cause, lost in dropped.items())
    hints = []
    if {OVER_LENGTH, IDENTICAL[1]} & {*dropped}:
        hints.append(f"raise data.max_length ({recipe.data.max_length} now)")
    if IDENTICAL[0] in dropped:
        hints.append("look at the chat template: it renders both completions of a pair alike")
    return DataError(f"no preference is left to train on: {causes}", "; ".join(hints))


def _require_figures(objective: str, split: ReadySplit) -> None:
    """Refuse training rows without the scores that an objective reads."""
    reads = READS.get(objective)
    if reads is None:
        return
    column = split.tokens.column(reads)
    figures = column.flatten() if reads == "gaps" else column  # one a preference, or one list a group
    if figures.null_count:
        rows = "preferences have no score gap" if reads == "gaps" else "groups have no scores"
        raise DataError(
            f"loss.objective: {objective} needs scores, and {figures.null_count:,} of {len(figures):,} training {rows}",
            "name the columns of the scores (data.scores), or set loss.objective to bradley_terry",
        )


def _require_soft(objective: str, split: ReadySplit) -> None:
    """Refuse probabilities of preferences where the objective would take each as certain."""
    if objective not in SOFT and "probabilities" in split.tokens.table.column_names:
        raise DataError(
            f"loss.objective: {objective} can't use raters' votes or ties with a probability of one half, which the "
            "training rows have",
            f"set loss.objective to {' or '.join(SOFT)}, or leave out data.votes, data.tied and data.gap_scale",
        )


def _require_weights(objective: str, split: ReadySplit) -> None:
    """Refuse weights of preferences where the objective is one over whole groups."""
    if objective in UNWEIGHTED and "weights" in split.tokens.table.column_names:
        raise DataError(
            f"loss.objective: {objective} compares whole groups, so it can't use the weights of preferences",
            "set loss.objective to bradley_terry, or leave out data.preference_weights",
        )


def make_plan(recipe: Recipe, train_split: ReadySplit, packing: Packing, processes: int) -> TrainingPlan:
    """The run's steps and micro-batches."""
    optim = recipe.optim
    return plan_training(
        [GroupSize(prefix, suffixes) for prefix, suffixes in train_split.tokens.lengths()],
        epochs=optim.epochs,
        max_steps=optim.max_steps,
        global_batch_size=optim.global_batch_size,
        processes=processes,
        seed=recipe.run.seed,
        packing=packing,
        max_tokens=optim.tokens_per_microbatch,
        max_groups=optim.microbatch_size,
        one_pass=train_split.one_pass(recipe.run.seed),
    )


def describe_plan(plan: TrainingPlan, recipe: Recipe, model: RewardModel) -> str:
    """The plan in a line: steps, micro-batches, packing, trained parameters and dtype."""
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    return (
        f"{len(plan.steps)} steps of {max(sum(map(len, step)) for step in plan.steps)} groups = "
        f"{plan.processes} processes x {plan.accumulation} micro-batches; packing {model.packing}; "
        f"{trained:,} parameters trained; {recipe.model.dtype}"
    )


def make_validation(
    recipe: Recipe, splits: Mapping[str, ReadySplit], steps: int, run: OpenRun, display: Display
) -> Validation:
    """When and on what the run is validated, and how the final checkpoint is chosen."""
    section, rows = recipe.evaluation, validation_groups(recipe, splits)
    if not rows.groups and section.select != "last":
        display.note("no validation during training: the last checkpoint becomes the final model")
    selection = Selection(
        section.select if rows.groups else "last",
        section.stop_after,
        run.resumed.changed if run.resumed else (),
        run.folder / "checkpoints",
        display.note,
    )
    every = interval_steps(section.every, steps) if rows.groups else 0
    return Validation(rows, every, section.tokens_per_batch, selection)


def make_checkpoint_writer(
    recipe: Recipe, splits: Mapping[str, ReadySplit], renderer: Renderer, model: RewardModel, fingerprint: JsonObject
) -> CheckpointWriter:
    """The writer of the run's checkpoints, with all that they hold beside the weights."""
    base = base_name(recipe.model)
    license_ = stated_license(base, model.commit) if process_state().is_main_process else {}
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "data": {name: split.fingerprint for name, split in splits.items()},
        "checks": [check.record() for check in splits["train"].data.report.checks],
        "base": {"name": base, "commit": model.commit, "license": license_},
    }
    shapes = saved_shapes(model.module)
    return CheckpointWriter(renderer, scoring_of(recipe), record, fingerprint, shapes, recipe.run.keep_checkpoints)


def training_arguments(recipe: Recipe, plan: TrainingPlan, folder: Path, strategy: str) -> RewardConfig:
    """Arguments of a planned run under a strategy: none, ddp, zero2, zero3 or fsdp.

    Raises:
        InputError: these processes can't run the recipe's strategy.
    """
    optim, cuda = recipe.optim, torch.cuda.is_available()
    optimizers = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
    if not cuda:  # where all memory is the host's there is nothing to page
        optimizers |= {"paged_adamw_8bit": "adamw_bnb_8bit", "paged_adamw_32bit": "adamw_torch_fused"}
    checkpointing, rank = optim.gradient_checkpointing, recipe.lora.rank if recipe.lora else 0
    reentrant = strategy == "zero3" and rank > 0
    schedules = {"constant": "constant_with_warmup"}
    arguments = RewardConfig(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,  # the plan holds all epochs
        per_device_train_batch_size=1,  # a planned micro-batch
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=schedules.get(optim.schedule, optim.schedule),
        warmup_steps=whole_steps(optim.warmup_ratio * len(plan.steps)),
        optim=optimizers.get(optim.optimizer, optim.optimizer),
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=recipe.run.seed,
        use_cpu=not cuda,
        bf16=False,  # the model enters autocast itself
        fp16=recipe.model.dtype == "float16",  # for the loss scaler
        gradient_checkpointing=checkpointing != "none",
        gradient_checkpointing_kwargs=(
            checkpointing_options(checkpointing, rank, reentrant) if checkpointing != "none" else None
        ),
        activation_offloading=optim.activation_offloading and cuda,  # without a GPU they are where they would go
        logging_steps=recipe.tracking.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would log 0 for a loss that is not finite
        save_strategy="steps",
        save_steps=2**31 - 1,  # Schedule decides
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        disable_dropout=False,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        dataloader_pin_memory=cuda,
        **strategy_arguments(recipe, strategy, plan.processes),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # torch's DataParallel would take all GPUs that the process sees
    if not cuda:
        arguments._setup_devices = torch.device("cpu")  # not accelerate's cpu:0: transformers 5.17 can't resume there
    return arguments
