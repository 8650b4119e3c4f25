"""A recipe's training run, from prepared data to `final/`."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.display import Display, Silent
from rmtrain.errors import CheckpointError, Interrupted, RmtrainError, RunFailedError, command_line
from rmtrain.json_values import JsonObject
from rmtrain.model.compiling import compile_layers, compiler_obstacle
from rmtrain.model.devices import gather_values, process_state, require_agreement
from rmtrain.model.host_memory import keep_tensors_whole
from rmtrain.model.merged_base import merged_start, write_base
from rmtrain.model.reward_model import RewardModel, hub_commit
from rmtrain.model.saving import save_final
from rmtrain.model.sidecar import scoring_of
from rmtrain.model.start import base_name, build_model, find_start, merging_note, shape_differences
from rmtrain.recipe.load import LoadedRecipe
from rmtrain.recipe.schema import EvaluationSection, Recipe
from rmtrain.runs import update_manifest
from rmtrain.signals import on_signal
from rmtrain.training.build import RunPlan, describe_plan, make_checkpoint_writer, make_validation, training_arguments
from rmtrain.training.callbacks import GracefulStop, GroupTimeouts, MetricsLog, Schedule
from rmtrain.training.checkpointing import verify
from rmtrain.training.choices import settle, settle_plan
from rmtrain.training.failures import now, recording_failure, resume_hint
from rmtrain.training.lifecycle import OpenRun, open_run
from rmtrain.training.memory_plan import memory_failure
from rmtrain.training.microbatches import MicrobatchDataset
from rmtrain.training.objectives import make_objective
from rmtrain.training.plan import interval_steps
from rmtrain.training.resume import damaged_state, run_fingerprint
from rmtrain.training.selection import StoppedEarly
from rmtrain.training.strategies import leave_zero3
from rmtrain.training.throughput import peak_memory
from rmtrain.training.tracking import WandbLog
from rmtrain.training.trainer import GroupRewardTrainer


class TrainingResult(NamedTuple):
    """A finished run; figures are over all processes, and over all parts of a run that was resumed."""

    run: Path
    steps: int
    train_loss: float | None  # mean over the run's steps, nats
    tokens: int  # tokens that went through the backbone
    tokens_per_second: float | None
    pairs_per_second: float | None
    peak_memory_bytes: int | None


def train(
    loaded: LoadedRecipe,
    splits: Mapping[str, ReadySplit],
    renderer: Renderer,
    display: Display,
    resume: Path | None = None,
    allow_changes: bool = False,
) -> TrainingResult:
    """Train a recipe on prepared splits and write the run folder up to `final/`.

    Every process of a distributed run calls this with the same arguments.

    Args:
        splits: tokenised; `train`, and `validation` where the recipe has one.
        allow_changes: resume even if recipe or data differ.

    Raises:
        InputError: the run can't be resumed, or is in use.
        Interrupted: stopped by a signal, with a checkpoint.
        RunFailedError: stopped by an error; the manifest says which.
    """
    state = process_state(loaded.recipe.distributed.timeout_minutes)
    display = display if state.is_main_process else Silent()
    settled = settle(loaded.recipe, resume)
    keep_tensors_whole()
    settled, plan = settle_plan(settled, splits, state.num_processes)
    recipe, loaded = settled.recipe, replace(loaded, recipe=settled.recipe)
    plan.memory.require_fit()
    fingerprint = run_fingerprint(recipe, splits, renderer, plan.sharding.strategy, state.num_processes)
    require_agreement(json.dumps(fingerprint, sort_keys=True, default=str), "rows, weights or settings")
    with ExitStack() as stack:
        stack.callback(leave_zero3)
        run = open_run(loaded, splits, fingerprint, resume, allow_changes, display, stack)
        if settled.reasons and state.is_main_process:
            update_manifest(run.folder, choices=settled.record())
        with recording_failure(run.folder, new=resume is None):
            return _train(recipe, splits, renderer, plan, run, fingerprint, display)


def _train(
    recipe: Recipe,
    splits: Mapping[str, ReadySplit],
    renderer: Renderer,
    plan: RunPlan,
    run: OpenRun,
    fingerprint: JsonObject,
    display: Display,
) -> TrainingResult:
    state, batches, folder = process_state(), plan.batches, run.folder
    display.note(f"run folder: {folder}")
    display.note(f"strategy {plan.sharding}: {plan.reason}")
    model = _load_model(recipe, renderer, run)
    if recipe.model.compile and compiler_obstacle() is None:
        compile_layers(model.module, display.note)
    for note in dict.fromkeys([*plan.notes, *model.notes]):
        display.note(note)
    display.note(describe_plan(batches, recipe, model))
    display.note(str(plan.memory.estimate(plan.sharding)))
    if state.is_main_process:
        base = {"name": base_name(recipe.model), "commit": model.commit}
        update_manifest(folder, model=base, steps=len(batches.steps))

    tokens, text = splits["train"].tokens, recipe.loss.text_loss > 0
    place, by_preference = state.process_index, recipe.loss.average_over == "preferences"
    data = MicrobatchDataset(tokens, batches, place, model.packing, renderer.pad_id, text, by_preference)
    validation = make_validation(recipe, splits, len(batches.steps), run, display)
    schedule = Schedule(validation.every, interval_steps(recipe.run.save_every, len(batches.steps)))
    stop, log = GracefulStop(), MetricsLog(folder / "metrics.jsonl", batches.steps_per_epoch, display.metrics)
    tracker = WandbLog(recipe.tracking, folder, recipe.model_dump(mode="json"))
    trainer = GroupRewardTrainer(
        model,
        training_arguments(recipe, batches, folder, plan.sharding.strategy),
        data,
        make_objective(recipe.loss),
        validation,
        make_checkpoint_writer(recipe, splits, renderer, model, fingerprint),
        [schedule, stop, tracker, GroupTimeouts(), log, validation.selection],
        head_learning_rate=recipe.optim.head_learning_rate,
        notify=display.note,
    )
    with on_signal(stop.request):
        try:
            with tracker:
                _take_steps(trainer, plan, run)
                if stop.stopped:
                    steps = f"step {trainer.state.global_step} of {len(batches.steps)}"
                    raise Interrupted(f"stopped at {steps}; a checkpoint is written", resume_hint(folder))
                if state.is_main_process:
                    save_final(_selected_checkpoint(folder, trainer), folder / "final", recipe.model.dtype)
        except Interrupted:
            state.wait_for_everyone()  # a launcher ends the other processes once one has ended
            raise
    if stop.requested:
        raise Interrupted("the model is trained; stopped before any split was scored", resume_hint(folder))
    if state.is_main_process:
        _record_finish(folder, trainer, recipe.evaluation)
    state.wait_for_everyone()
    return _result(folder, trainer)


def _load_model(recipe: Recipe, renderer: Renderer, run: OpenRun) -> RewardModel:
    """The recipe's model. An adapter of another shape is first merged into its base, by the main process."""
    start = find_start(recipe.model)
    if not shape_differences(recipe, start):
        return build_model(recipe, renderer.pad_id, run.commit)
    state, merged = process_state(), merged_start(run.folder)
    if state.is_main_process:
        write_base(run.folder, start, run.commit, renderer, scoring_of(recipe))
    state.wait_for_everyone()
    model = build_model(recipe, renderer.pad_id, run.commit, start=merged)
    notes = (*model.notes, *merging_note(recipe, start, model.module.config, merged.name))
    return replace(model, notes=notes, commit=run.commit or hub_commit(start.name, start.revision))


def _take_steps(trainer: GroupRewardTrainer, plan: RunPlan, run: OpenRun) -> None:
    """Train from the first step, or from a checkpoint, to the last step, or to where the run is stopped early."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    point = run.resumed
    if point is not None:
        trainer.totals, trainer.averages = point.totals, point.averages
    try:
        trainer.train(resume_from_checkpoint=str(point.checkpoint) if point else None)
    except StoppedEarly:
        pass
    except Exception as error:
        step = trainer.state.global_step + 1
        failure: RmtrainError | None = damaged_state(error, point.checkpoint) if point else None
        failure = failure or memory_failure(error, plan.memory, plan.sharding, step, run.folder)
        if failure is None:
            raise
        raise failure from error


def _selected_checkpoint(folder: Path, trainer: GroupRewardTrainer) -> Path:
    """The best checkpoint by validation, else the last one."""
    state = trainer.state
    path = folder / "checkpoints" / f"checkpoint-{state.best_global_step or state.global_step}"
    try:
        verify(path)
    except CheckpointError as error:
        command = command_line("train", "--resume", folder, "--allow-changes", "evaluation.select=last")
        raise RunFailedError(
            f"the checkpoint that should become the final model is damaged: {error.message}",
            f"take the last one: {command}",
        ) from error
    return path


def _record_finish(folder: Path, trainer: GroupRewardTrainer, section: EvaluationSection) -> None:
    last, best = trainer.state.global_step, trainer.state.best_global_step
    final = {"step": best or last, "by": section.select if best else "last", "of": last}
    update_manifest(folder, state="finished", ended=now(), totals=trainer.totals, final=final)


def _result(folder: Path, trainer: GroupRewardTrainer) -> TrainingResult:
    totals = trainer.totals
    seconds = totals["seconds"]
    return TrainingResult(
        folder,
        trainer.state.global_step,
        totals["loss_sum"] / totals["steps"] if totals["steps"] else None,
        int(totals["tokens"]),
        totals["tokens"] / seconds if seconds else None,
        totals["pairs"] / seconds if seconds else None,
        int(max(totals.get("peak_memory_bytes", 0), *gather_values([peak_memory()]))),
    )
