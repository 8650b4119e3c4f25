"""A recipe's training run, from prepared data to `final/`."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.display import Display, Silent
from rmtrain.errors import CheckpointError, InputError, Interrupted, RmtrainError, RunFailedError
from rmtrain.model.adapters import add_lora
from rmtrain.model.devices import process_state
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.model.saving import save_final
from rmtrain.recipe.load import LoadedRecipe
from rmtrain.recipe.schema import Recipe
from rmtrain.runs import read_manifest, update_manifest
from rmtrain.training.arguments import training_arguments
from rmtrain.training.callbacks import GracefulStop, GroupTimeouts, MetricsLog, Schedule, interval_steps
from rmtrain.training.checkpoints import verify
from rmtrain.training.fit import memory_failure
from rmtrain.training.memory import describe_need
from rmtrain.training.plan import TrainingPlan
from rmtrain.training.prospect import Prospect, look_ahead
from rmtrain.training.record import now, record_failure, record_resume, start_run, take_up_run
from rmtrain.training.resume import ResumePoint, choose_checkpoint, run_fingerprint
from rmtrain.training.telemetry import peak_memory
from rmtrain.training.tracking import WandbLog, check_login
from rmtrain.training.trainer import GroupRewardTrainer


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
    if len(splits["train"].tokens) == 0:
        raise InputError(
            "the training split is empty after curation", "see `rmtrain data` for what was dropped and why"
        )
    state = process_state(recipe.distributed.timeout_minutes)
    display = display if state.is_main_process else Silent()
    prospect = look_ahead(recipe, splits, state.num_processes)
    prospect.forecast.require_room(prospect.room)
    fingerprint = run_fingerprint(recipe, splits, renderer, prospect.layout.strategy, state.num_processes)
    with ExitStack() as stack:
        folder, point, commit = _begin(loaded, splits, fingerprint, display, resume, allow_changes, stack)
        try:
            return _train_in(folder, point, commit, recipe, splits, renderer, fingerprint, prospect, display)
        except BaseException as error:
            shown = record_failure(folder, error, new=resume is None)
            if shown is error:
                raise
            raise shown from error


def _begin(
    loaded: LoadedRecipe,
    splits: Mapping[str, ReadySplit],
    fingerprint: dict[str, Any],
    display: Display,
    resume: Path | None,
    allow_changes: bool,
    stack: ExitStack,
) -> tuple[Path, ResumePoint | None, str | None]:
    """Open the run folder on the main process: it, where to go on from, and the base model's commit, for all processes.

    The lock goes with the stack. An error there is raised on all processes.
    """
    answer: list[Any] = [None]
    cause: Exception | None = None
    if process_state().is_main_process:
        try:
            check_login(loaded.recipe.tracking.wandb)
            answer = [_open(loaded, splits, fingerprint, display, resume, allow_changes, stack)]
        except RmtrainError as error:
            answer = [error]
        except OSError as error:  # a full disk, say, or a file system without locks
            place, cause = resume or loaded.recipe.run.folder, error
            answer = [InputError(f"{place}: the run folder can't be written: {error}", "make room, or set run.folder")]
        except Exception as error:
            cause, hint = error, "this is a fault in rmtrain; run again with --debug for the traceback"
            answer = [RunFailedError(f"the run can't be begun: {type(error).__name__}: {error}", hint)]
    broadcast_object_list(answer)  # the others wait for it, whatever it is
    if isinstance(answer[0], RmtrainError):
        raise answer[0] from cause
    return answer[0]  # type: ignore[no-any-return]


def _open(
    loaded: LoadedRecipe,
    splits: Mapping[str, ReadySplit],
    fingerprint: dict[str, Any],
    display: Display,
    resume: Path | None,
    allow_changes: bool,
    stack: ExitStack,
) -> tuple[Path, ResumePoint | None, str | None]:
    if resume is None:
        return start_run(loaded, splits, stack), None, None
    take_up_run(resume, stack)
    point = choose_checkpoint(resume, fingerprint, display, allow_changes)
    record_resume(resume, loaded, splits, point.checkpoint if point else None)
    base = read_manifest(resume).get("model", {})
    commit = base.get("commit") if base.get("name") == loaded.recipe.model.name else None
    return resume, point, commit


def _train_in(
    folder: Path,
    point: ResumePoint | None,
    commit: str | None,
    recipe: Recipe,
    splits: Mapping[str, ReadySplit],
    renderer: Renderer,
    fingerprint: dict[str, Any],
    prospect: Prospect,
    display: Display,
) -> TrainingResult:
    state = process_state()
    display.note(f"run folder: {folder}")
    plan = prospect.plan
    display.note(f"strategy {prospect.layout}: {prospect.reason}")
    model = build_model(recipe, renderer.pad_id, commit)
    arguments = training_arguments(recipe, plan, folder, prospect.layout.strategy)
    for note in model.notes:
        display.note(note)
    display.note(describe_plan(plan, recipe, splits["train"], model))
    display.note(describe_need(prospect.forecast.need(prospect.layout)))
    if state.is_main_process:
        update_manifest(folder, model={"name": recipe.model.name, "commit": model.commit}, steps=len(plan.steps))
    validation = validation_groups(recipe, splits)
    if not validation and recipe.evaluation.select != "last":
        display.note("no validation during training: the last checkpoint becomes the final model")
    total = len(plan.steps)
    stop = GracefulStop()
    tracking = recipe.tracking
    tracker = WandbLog(tracking.wandb, tracking.wandb_project, folder, recipe.model_dump(mode="json"))
    trainer = GroupRewardTrainer(
        model=model,
        args=arguments,
        train=splits["train"].tokens,
        plan=plan,
        validation=validation,
        renderer=renderer,
        sidecar={
            "recipe": recipe.model_dump(mode="json"),
            "data": {name: split.fingerprint for name, split in splits.items()},
            "base": {"name": recipe.model.name, "commit": model.commit},
        },
        tokens_per_batch=recipe.evaluation.tokens_per_batch,
        margin=recipe.loss.margin,
        centering=recipe.loss.centering,
        head_learning_rate=recipe.optim.head_learning_rate,
        keep_checkpoints=recipe.run.keep_checkpoints,
        fingerprint=fingerprint,
        notify=display.note,
        schedule=Schedule(
            interval_steps(recipe.evaluation.every, total),
            interval_steps(recipe.run.save_every, total),
            bool(validation),
        ),
        callbacks=[
            stop,
            GroupTimeouts(),
            MetricsLog(folder / "metrics.jsonl", plan.steps_per_epoch, display.metrics),
            *([tracker] if tracking.wandb != "off" else []),
        ],
    )
    if point is not None:
        trainer.totals = point.totals
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stop.install()
    try:
        with tracker:
            try:
                trainer.train(resume_from_checkpoint=str(point.checkpoint) if point else None)
            except RuntimeError as error:
                step = trainer.state.global_step + 1
                failure = memory_failure(error, prospect.forecast, prospect.layout, step, folder)
                if failure is None:
                    raise
                raise failure from error
            if stop.stopped:
                raise Interrupted(
                    f"stopped at step {trainer.state.global_step} of {total}; a checkpoint is written",
                    f"go on with: rmtrain train --resume {folder}",
                )
            if state.is_main_process:
                save_final(_selected_checkpoint(folder, trainer, recipe), folder / "final", recipe.model.dtype)
    except Interrupted:
        state.wait_for_everyone()  # a launcher ends the others once one has ended, and wandb's record may take its time
        raise
    finally:
        stop.restore()
    if stop.requested:
        raise Interrupted("trained; stopped before anything was scored", f"go on with: rmtrain train --resume {folder}")
    if state.is_main_process:
        update_manifest(folder, state="finished", ended=now(), totals=trainer.totals)
    state.wait_for_everyone()
    return _result(folder, trainer)


def build_model(recipe: Recipe, pad_id: int, commit: str | None = None) -> RewardModel:
    """Load the recipe's model, with adapters where it has a lora section.

    Args:
        recipe: of the run.
        pad_id: of the tokenizer.
        commit: of the hub that the run began with, in place of the recipe's revision, which may have moved on.
    """
    section, lora = recipe.model, recipe.lora
    options = BackboneOptions(section.dtype, section.quantization, section.attention, section.packing)
    model = load_backbone(
        _absolute(section.name), commit or section.revision, options, pad_id, recipe.run.seed, trainable=lora is None
    )
    if lora is None:
        return model
    return add_lora(model, lora, recipe.run.seed)


def _absolute(name: str) -> str:
    """A folder by its absolute path, since an adapter names its base for readers elsewhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def describe_plan(plan: TrainingPlan, recipe: Recipe, train_split: ReadySplit, model: RewardModel) -> str:
    """One line of derived numbers, before the machine is spent."""
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    return (
        f"{len(plan.steps)} steps of {min(recipe.optim.global_batch_size, len(train_split.tokens))} groups = "
        f"{plan.processes} processes x {plan.accumulation} micro-batches; packing {model.packing}; "
        f"{trained:,} parameters trained; {recipe.model.dtype}"
    )


def validation_groups(recipe: Recipe, splits: Mapping[str, ReadySplit]) -> list[TokenizedGroup]:
    """What is scored during training: all of the validation split, or the recipe's limit of it, spread evenly."""
    if "validation" not in splits or recipe.evaluation.every == 0:
        return []
    tokens = splits["validation"].tokens
    limit = min(recipe.evaluation.limit or len(tokens), len(tokens))
    return [tokens.group(i * len(tokens) // limit) for i in range(limit)]


def _selected_checkpoint(folder: Path, trainer: GroupRewardTrainer, recipe: Recipe) -> Path:
    """The best checkpoint by validation, else the last one."""
    best = trainer.state.best_global_step if recipe.evaluation.select != "last" else None
    path = folder / "checkpoints" / f"checkpoint-{best or trainer.state.global_step}"
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
