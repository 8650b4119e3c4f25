"""What is known of a run before its model is loaded: its micro-batches, the memory they take, and how it is spread."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.token_cache import IDENTICAL, OVER_LENGTH
from rmtrain.errors import DataError, InputError
from rmtrain.model.batch import GroupSize, Packing
from rmtrain.model.positions import check_positions
from rmtrain.model.reward_model import RewardModel, choose_packing, reward_model_class
from rmtrain.model.rotation import require_fixed_rotation
from rmtrain.model.start import start_config
from rmtrain.recipe.schema import Recipe
from rmtrain.training.engines import require_engine
from rmtrain.training.fit import Forecast
from rmtrain.training.memory import Layout, Workload, least_free_memory
from rmtrain.training.objectives import READS
from rmtrain.training.plan import TrainingPlan, plan_training


class Prospect(NamedTuple):
    """What is known of a run before its model is loaded."""

    plan: TrainingPlan
    packing: Packing
    notes: list[str]  # on the packing and on long rows
    forecast: Forecast
    room: int | None  # free bytes of a GPU; None without GPUs
    layout: Layout
    reason: str  # for the layout


def look_ahead(recipe: Recipe, splits: Mapping[str, ReadySplit], processes: int) -> Prospect:
    """Plan a run's micro-batches, and choose how it is spread, from the model's config alone.

    Raises:
        InputError: no such model, an architecture without a score head, rows too long for it, nothing to train on or
            to stop by, or an engine that these processes can't run.
    """
    if len(splits["train"].tokens) == 0:
        raise _nothing_left(splits["train"], recipe)
    if recipe.evaluation.stop_after is not None and "validation" not in splits:
        raise InputError(
            "evaluation.stop_after: the data has no validation split", "add one (data.holdout), or leave it out"
        )
    _require_figures(recipe.loss.objective, splits["train"])
    config = start_config(recipe)
    lengths = [prefix + max(suffixes) for split in splits.values() for prefix, suffixes in split.tokens.lengths()]
    require_fixed_rotation(config, max(lengths, default=0))
    model_class = reward_model_class(config)
    beyond = check_positions(config, model_class, recipe.data.max_length, max(lengths, default=0))
    packing, notes = choose_packing(model_class, config, recipe.model.packing)
    plan = make_plan(recipe, splits["train"], packing, processes)
    forecast = Forecast(recipe, config, Workload.of(recipe, plan, splits, packing), processes)
    room = least_free_memory()
    layout, reason = forecast.choose(room)
    require_engine(recipe, layout.strategy, processes)
    return Prospect(plan, packing, [*notes, *beyond], forecast, room, layout, reason)


def describe_plan(plan: TrainingPlan, recipe: Recipe, train_split: ReadySplit, model: RewardModel) -> str:
    """One line of derived numbers, before the machine is spent."""
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    return (
        f"{len(plan.steps)} steps of {min(recipe.optim.global_batch_size, len(train_split.tokens))} groups = "
        f"{plan.processes} processes x {plan.accumulation} micro-batches; packing {model.packing}; "
        f"{trained:,} parameters trained; {recipe.model.dtype}"
    )


def make_plan(recipe: Recipe, train_split: ReadySplit, packing: Any, processes: int) -> TrainingPlan:
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
    )


def _require_figures(objective: str, split: ReadySplit) -> None:
    """Refuse training rows without the scores that an objective reads."""
    reads = READS.get(objective)
    if reads is None:
        return
    column = split.tokens.table.with_format("arrow")[:][reads].combine_chunks()
    figures = column.flatten() if reads == "gaps" else column  # one a preference, or one list a group
    if figures.null_count:
        rows = "preferences have no score gap" if reads == "gaps" else "groups have no scores"
        raise DataError(
            f"loss.objective: {objective} needs scores, and {figures.null_count:,} of {len(figures):,} training {rows}",
            "name the columns of the scores (data.scores), or set loss.objective to bradley_terry",
        )


def _nothing_left(split: ReadySplit, recipe: Recipe) -> DataError:
    dropped = split.tokens.dropped
    causes = ", ".join(f"{lost.preferences} are {cause}" for cause, lost in dropped.items())
    hints = []
    if {OVER_LENGTH, IDENTICAL[1]} & {*dropped}:
        hints.append(f"raise data.max_length ({recipe.data.max_length} now)")
    if IDENTICAL[0] in dropped:
        hints.append("look at the chat template: it renders both completions of a pair alike")
    return DataError(f"no preference is left to train on: {causes}", "; ".join(hints))
