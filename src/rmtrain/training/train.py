"""A recipe's training run, from prepared data to `final/`."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.display import Display, Silent
from rmtrain.errors import CheckpointError, InputError, Interrupted, RmtrainError, RunFailedError, WriteError
from rmtrain.files import why_unwritten
from rmtrain.model.devices import process_state, require_agreement
from rmtrain.model.merged_base import merged_start, write_base
from rmtrain.model.reward_model import RewardModel, hub_commit
from rmtrain.model.saving import save_final
from rmtrain.model.sidecar import scoring_of
from rmtrain.model.start import base_name, build_model, find_start, merging_note, shape_differences
from rmtrain.model.weights import stated_license
from rmtrain.recipe.load import LoadedRecipe
from rmtrain.runs import update_manifest
from rmtrain.signals import on_signal
from rmtrain.training.arguments import training_arguments
from rmtrain.training.callbacks import GracefulStop, GroupTimeouts, MetricsLog, Schedule, interval_steps
from rmtrain.training.checkpoints import verify
from rmtrain.training.fit import memory_failure
from rmtrain.training.memory import describe_need
from rmtrain.training.objectives import make_objective
from rmtrain.training.prospect import Prospect, describe_plan, look_ahead
from rmtrain.training.record import now, record_failure, record_resume, start_run, take_up_run
from rmtrain.training.resume import ResumePoint, choose_checkpoint, damaged_state, run_fingerprint
from rmtrain.training.selection import Selection, StoppedEarly, validation_groups
from rmtrain.training.telemetry import peak_memory
from rmtrain.training.tracking import WandbLog, check_login
from rmtrain.training.trainer import GroupRewardTrainer, Parts


class TrainingResult(NamedTuple):
    """A finished run; figures are over all processes, and over all parts of a run that was resumed."""

    run: Path
    steps: int
    train_loss: float | None  # mean over the run's steps, nats
    tokens: int  # that went through the backbone
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
        loaded: the recipe.
        splits: tokenised; `train`, and `validation` where the recipe has one.
        renderer: the rendering contract.
        display: of the main process.
        resume: run folder to go on with.
        allow_changes: resume even if recipe or data differ.

    Raises:
        InputError: the run can't be resumed, or is in use.
        Interrupted: stopped by a signal, with a checkpoint.
        RunFailedError: stopped by an error; the manifest says which.
    """
    recipe = loaded.recipe
    state = process_state(recipe.distributed.timeout_minutes)
    prospect = look_ahead(recipe, splits, state.num_processes)
    prospect.forecast.require_room(prospect.room)
    fingerprint = run_fingerprint(recipe, splits, renderer, prospect.layout.strategy, state.num_processes)
    require_agreement(json.dumps(fingerprint, sort_keys=True, default=str), "rows, weights or settings")
    shown = display if state.is_main_process else Silent()
    job = _Job(loaded, splits, renderer, prospect, fingerprint, shown)
    with ExitStack() as stack:
        start = _begin(job, resume, allow_changes, stack)
        try:
            return _train(job, start)
        except BaseException as error:
            told = record_failure(start.folder, error, new=resume is None)
            if told is error:
                raise
            raise told from error


class _Job(NamedTuple):
    """A run as it is planned, the same on every process."""

    loaded: LoadedRecipe
    splits: Mapping[str, ReadySplit]
    renderer: Renderer
    prospect: Prospect
    fingerprint: dict[str, Any]
    display: Display


class _Start(NamedTuple):
    """Where a run begins."""

    folder: Path
    point: ResumePoint | None  # to go on from
    commit: str | None  # of the base model, with which the run began


def _begin(job: _Job, resume: Path | None, allow_changes: bool, stack: ExitStack) -> _Start:
    """Open the run folder on the main process, and tell all processes; an error there is raised on all of them.

    The lock goes with the stack.
    """
    answer: list[Any] = [None]
    cause: Exception | None = None
    if process_state().is_main_process:
        try:
            check_login(job.loaded.recipe.tracking.wandb)
            answer = [_open(job, resume, allow_changes, stack)]
        except (OSError, WriteError) as error:  # a full disk, say, or a file system without locks
            place, cause = Path(resume or job.loaded.recipe.run.folder), error
            told = (error.message, error.hint) if isinstance(error, WriteError) else why_unwritten(error, place)
            why, hint = told or (str(error), "")
            hint = "; ".join(filter(None, [hint, "run.folder names another place"]))
            answer = [InputError(f"{place}: the run folder can't be written: {why}", hint)]
        except RmtrainError as error:
            answer = [error]
        except Exception as error:
            cause, hint = error, "this is a bug in rmtrain; run again with --debug for the traceback"
            answer = [RunFailedError(f"the run can't be begun: {type(error).__name__}: {error}", hint)]
    broadcast_object_list(answer)  # the others wait for it, whatever it is
    if isinstance(answer[0], RmtrainError):
        raise answer[0] from cause
    return answer[0]  # type: ignore[no-any-return]


def _open(job: _Job, resume: Path | None, allow_changes: bool, stack: ExitStack) -> _Start:
    if resume is None:
        return _Start(start_run(job.loaded, job.splits, stack), None, None)
    base = take_up_run(resume, stack).get("model", {})
    point = choose_checkpoint(resume, job.fingerprint, job.display, allow_changes)
    record_resume(resume, job.loaded, job.splits, point)
    return _Start(resume, point, base.get("commit") if base.get("name") == base_name(job.loaded.recipe.model) else None)


def _train(job: _Job, start: _Start) -> TrainingResult:
    recipe, plan, folder, tell = job.loaded.recipe, job.prospect.plan, start.folder, job.display.note
    state, stop = process_state(), GracefulStop()
    tell(f"run folder: {folder}")
    tell(f"strategy {job.prospect.layout}: {job.prospect.reason}")
    model = _load_model(job, start)
    for note in dict.fromkeys([*job.prospect.notes, *model.notes]):
        tell(note)
    tell(describe_plan(plan, recipe, job.splits["train"], model))
    tell(describe_need(job.prospect.forecast.need(job.prospect.layout)))
    if state.is_main_process:
        update_manifest(folder, model={"name": base_name(recipe.model), "commit": model.commit}, steps=len(plan.steps))
    tracker = WandbLog(recipe.tracking, folder, recipe.model_dump(mode="json"))
    trainer = _make_trainer(job, start, model, [stop, tracker])
    if start.point is not None:
        trainer.totals, trainer.averages = start.point.totals, start.point.averages
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    go_on = f"go on with: rmtrain train --resume {folder}"
    with on_signal(stop.request):
        try:
            with tracker:
                _run(trainer, job.prospect, folder, start.point)
                if stop.stopped:
                    step = f"step {trainer.state.global_step} of {len(plan.steps)}"
                    raise Interrupted(f"stopped at {step}; a checkpoint is written", go_on)
                if state.is_main_process:
                    save_final(_selected_checkpoint(folder, trainer), folder / "final", recipe.model.dtype)
        except Interrupted:
            state.wait_for_everyone()  # a launcher ends the others once one has ended; wandb's record may take its time
            raise
    if stop.requested:
        raise Interrupted("trained; stopped before anything was scored", go_on)
    if state.is_main_process:
        made, best = trainer.state.global_step, trainer.state.best_global_step
        final = {"step": best or made, "by": recipe.evaluation.select if best else "last", "of": made}
        update_manifest(folder, state="finished", ended=now(), totals=trainer.totals, final=final)
    state.wait_for_everyone()
    return _result(folder, trainer)


def _load_model(job: _Job, begun: _Start) -> RewardModel:
    """The recipe's model. An adapter of another shape is first merged into its base, by the main process."""
    recipe, pad_id, start = job.loaded.recipe, job.renderer.pad_id, find_start(job.loaded.recipe.model)
    if not shape_differences(recipe, start):
        return build_model(recipe, pad_id, begun.commit)
    state, merged = process_state(), merged_start(begun.folder)
    if state.is_main_process:
        write_base(begun.folder, start, begun.commit, job.renderer, scoring_of(recipe))
    state.wait_for_everyone()
    model = build_model(recipe, pad_id, start=merged)
    notes = (*model.notes, *merging_note(recipe, start, model.module.config, merged.name))
    return replace(model, notes=notes, commit=begun.commit or hub_commit(start.name, start.revision))


def _make_trainer(job: _Job, start: _Start, model: RewardModel, callbacks: list[TrainerCallback]) -> GroupRewardTrainer:
    recipe, plan, folder = job.loaded.recipe, job.prospect.plan, start.folder
    validation, total = validation_groups(recipe, job.splits), len(plan.steps)
    base = base_name(recipe.model)
    if not validation and recipe.evaluation.select != "last":
        job.display.note("no validation during training: the last checkpoint becomes the final model")
    parts = Parts(
        train=job.splits["train"].tokens,
        plan=plan,
        validation=validation,
        renderer=job.renderer,
        scoring=scoring_of(recipe),
        record={
            "recipe": recipe.model_dump(mode="json"),
            "data": {name: split.fingerprint for name, split in job.splits.items()},
            "base": {
                "name": base,
                "commit": model.commit,
                "license": stated_license(base, model.commit) if process_state().is_main_process else {},
            },
        },
        fingerprint=job.fingerprint,
        tokens_per_batch=recipe.evaluation.tokens_per_batch,
        objective=make_objective(recipe.loss),
        head_learning_rate=recipe.optim.head_learning_rate,
        keep_checkpoints=recipe.run.keep_checkpoints,
        schedule=Schedule(
            interval_steps(recipe.evaluation.every, total) if validation else 0,
            interval_steps(recipe.run.save_every, total),
        ),
        selection=Selection(
            recipe.evaluation.select if validation else "last",
            recipe.evaluation.stop_after,
            start.point.changed if start.point else (),
            folder / "checkpoints",
            job.display.note,
        ),
        notify=job.display.note,
    )
    arguments = training_arguments(recipe, plan, folder, job.prospect.layout.strategy)
    log = MetricsLog(folder / "metrics.jsonl", plan.steps_per_epoch, job.display.metrics)
    return GroupRewardTrainer(model, arguments, parts, [*callbacks, GroupTimeouts(), log])


def _run(trainer: GroupRewardTrainer, prospect: Prospect, folder: Path, point: ResumePoint | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(point.checkpoint) if point else None)
    except StoppedEarly:
        pass
    except Exception as error:
        step = trainer.state.global_step + 1
        failure: RmtrainError | None = damaged_state(error, point.checkpoint) if point else None
        if failure is None and isinstance(error, RuntimeError):
            failure = memory_failure(error, prospect.forecast, prospect.layout, step, folder)
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
        raise RunFailedError(
            f"the checkpoint that should become the final model is damaged: {error.message}",
            f"take the last one: rmtrain train --resume {folder} --allow-changes evaluation.select=last",
        ) from error
    return path


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
        int(max(totals.get("peak_memory_bytes", 0), *gather_object([peak_memory()]))),
    )
