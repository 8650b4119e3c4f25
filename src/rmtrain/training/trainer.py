"""TRL's RewardTrainer on packed groups: own batches, own loss, exact validation, whole checkpoints."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object, reduce, send_to_device
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl
from trl import RewardConfig, RewardTrainer

from rmtrain.data.render import Renderer
from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import NonFiniteError, RmtrainError, RunFailedError
from rmtrain.files import why_unwritten
from rmtrain.metrics.rankings import ranking_accuracy, reward_gaps
from rmtrain.model.batch import Batch
from rmtrain.model.digests import seal
from rmtrain.model.forward import check_head
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saving import check_weights, saved_shapes, write_companions
from rmtrain.model.sidecar import Scoring
from rmtrain.scoring.batches import score_groups
from rmtrain.training.callbacks import Schedule
from rmtrain.training.checkpoints import STAGING, commit, rotate, state_files
from rmtrain.training.microbatches import MicrobatchDataset, microbatch_loader
from rmtrain.training.objectives import Objective, RewardBatch
from rmtrain.training.optimizer import retune, separate_head, settings_by_group
from rmtrain.training.plan import TrainingPlan
from rmtrain.training.selection import Selection
from rmtrain.training.step_loss import loss_of_step, move_averages
from rmtrain.training.telemetry import COUNTS, Meter, measure_matrix_rate, operations_per_token


class Parts(NamedTuple):
    """What a trainer of groups is given besides its model and the Trainer's own arguments."""

    train: TokenizedSplit
    plan: TrainingPlan  # which groups go where when
    validation: Sequence[TokenizedGroup]  # scored by `evaluate`, in full and exactly
    renderer: Renderer  # saved beside every checkpoint
    scoring: Scoring  # how it is scored, as rmtrain.json says beside the rendering contract
    record: dict[str, Any]  # what rmtrain.json says besides
    fingerprint: dict[str, Any]  # of recipe and data, stored in every checkpoint and compared on resume
    tokens_per_batch: int  # when scoring
    objective: Objective
    head_learning_rate: float | None  # None is the adapters' own
    keep_checkpoints: int  # newest ones kept beside the best
    schedule: Schedule  # when to validate and save
    selection: Selection  # of the best checkpoint
    notify: Callable[[str], None]  # takes one line for the user


class GroupRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """RewardTrainer that trains on groups.

    Args:
        model: with its LoRA adapters, if it has any.
        args: the trainer's arguments; `output_dir` takes the checkpoints.
        parts: what is trained on, and how.
        callbacks: of the Trainer besides.
    """

    def __init__(self, model: RewardModel, args: RewardConfig, parts: Parts, callbacks: list[TrainerCallback]) -> None:
        self._parts, self._packing, self._shapes = parts, model.packing, saved_shapes(model.module)
        self._staging: str | None = None
        self._step_losses: list[tuple[list[str], RewardBatch, torch.Tensor]] = []
        self._step_parts: list[RewardBatch] = []  # of all processes, for an objective that needs the whole step
        self._observed: list[Mapping[str, torch.Tensor]] = []  # what is averaged, by micro-batch of the step
        self.averages: dict[str, float] = {}  # of that, over steps
        self.totals: dict[str, float] = dict.fromkeys([*COUNTS, "seconds", "loss_sum", "steps"], 0.0)
        rate = measure_matrix_rate(args.device, model.module.compute_dtype)
        self._meter = Meter(operations_per_token(model.module), rate)
        trained = {name: p.data for name, p in model.module.named_parameters() if p.requires_grad}
        super().__init__(
            model=model.module,
            args=args,
            train_dataset=parts.train.table,
            processing_class=parts.renderer.tokenizer,
            callbacks=[parts.schedule, *callbacks, parts.selection],
        )
        self.remove_callback(PrinterCallback)
        for name, parameter in self.model.named_parameters():  # TRL casts what trains on a quantised base to bfloat16
            if name in trained and parameter.dtype != trained[name].dtype:
                parameter.data = trained[name].to(parameter.device)
        check_head(self.model)

    # Data: packed micro-batches, planned in advance

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokenised by rmtrain.data

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The process's share of the plan; it is not resharded by accelerate."""
        args, parts = self.args, self._parts
        dataset = MicrobatchDataset(parts.train, parts.plan, args.process_index, self._packing, parts.renderer.pad_id)
        return microbatch_loader(dataset, args.dataloader_num_workers, args.dataloader_pin_memory)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step: the Trainer's, timed; with their rewards where the objective needs them all."""
        with self._meter.waiting():
            samples, count = super().get_batch_samples(*args, **kwargs)
        if self._parts.objective.whole_step:
            self._step_parts = self._rewards_of_step(samples)
        return samples, count

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """To the device without waiting for it, in full: the Trainer would cut loss weights to DeepSpeed's dtype."""
        return send_to_device(inputs, self.args.device, non_blocking=True)  # type: ignore[no-any-return]

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimiser, with the score head in groups of its own where it has its own learning rate."""
        optimizer = super().create_optimizer(model)
        if self._parts.head_learning_rate is not None:
            separate_head(optimizer, self.model, self._parts.head_learning_rate)
        self._settings = settings_by_group(optimizer)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's; then the recipe's learning rates and other settings take the place of the checkpoint's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            before, now = retune(self.optimizer, self.lr_scheduler, self._settings)
            if before != now and self.state.global_step < self.state.max_steps:
                step = self.state.global_step + 1
                self._parts.notify(f"the learning rate of step {step} jumps from {before:.3g} to {now:.3g}")

    # The step

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of a micro-batch; figures stay on the device until they are logged."""
        self._meter.begin()
        counts, ids, objective = inputs.pop("counts"), inputs.pop("ids"), self._parts.objective
        batch = self._rewards(model, inputs)
        if objective.whole_step:
            place = self.args.process_index * len(self._step_parts) // self.args.world_size + len(self._step_losses)
            loss = loss_of_step(objective, self._step_parts, place, batch)
        else:
            loss = objective.loss(batch)
        self._step_losses.append((ids, batch.moved(self.args.device), loss.detach()))
        if objective.observe is not None:
            with torch.no_grad():
                self._observed.append(objective.observe(batch))
        self._meter.count(counts)
        if counts["pairs"]:
            self._meter.learn(batch)
        if self.accelerator.sync_gradients:  # the last micro-batch of the step
            if self._observed:
                self.averages = move_averages(self.averages, self._observed, objective.decay)
                self._observed = []
            if self.is_deepspeed_enabled:  # it steps within the last backward pass
                self._require_finite(None)
        return (loss, None) if return_outputs else loss

    def _rewards(self, model: Any, inputs: Batch) -> RewardBatch:
        """A forward pass over a micro-batch, and what the objective sees of it."""
        preferences, completions = inputs.pop("preferences"), inputs.pop("completions")
        outputs = model(**inputs, **self._parts.objective.asks)
        log_probs = getattr(outputs, "log_probs", None)
        return RewardBatch(outputs.logits, preferences, completions, outputs.states, log_probs, self.averages)

    def _rewards_of_step(self, samples: list[Batch]) -> list[RewardBatch]:
        """All micro-batches of a step over all processes, by one more forward pass without gradients.

        It draws the dropout masks that the pass with gradients draws again.
        """
        self.model_wrapped.train()
        names = ("ids", "counts")
        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            given = [{key: value for key, value in sample.items() if key not in names} for sample in samples]
            own = [self._rewards(self.model_wrapped, self._prepare_inputs(sample)) for sample in given]
        everyone = gather_object([part.moved("cpu") for part in own])
        return [part.moved(self.args.device) for part in everyone]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm, which must be finite before the optimiser may step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._require_finite(norm)
        return norm

    def _require_finite(self, norm: Any) -> None:
        """Stop all processes if a loss of the step, or the norm of its gradients, is not finite on one of them."""
        losses, self._step_losses = self._step_losses, []
        finite = not losses or bool(torch.stack([loss for _, _, loss in losses]).isfinite().all())
        scaled = getattr(self.accelerator, "scaler", None) is not None  # of float16: it skips the step and scales less
        if norm is not None and not scaled:
            finite = finite and 0 <= float(norm) < math.inf  # DeepSpeed reports an overflow as -1
        if self.args.world_size > 1:
            finite = not reduce(torch.tensor(float(not finite), device=self.args.device), "sum")
        if finite:
            return
        bad = [
            ids[group]
            for ids, batch, _ in losses
            for group, x in zip(batch.completions.groups.tolist(), batch.rewards.tolist(), strict=True)
            if x - x != 0
        ]
        if self.args.world_size > 1:
            bad = gather_object(bad)
        rows = f"groups {', '.join(dict.fromkeys(bad))}" if bad else "no single group; the gradients overflowed"
        taken = self.is_deepspeed_enabled and norm is not None  # within the backward pass
        raise NonFiniteError(
            f"step {self.state.global_step + 1}: loss or gradient norm is not finite ({rows}); the step was "
            f"{'taken by DeepSpeed, and nothing of it is saved' if taken else 'not taken'}",
            "lower optim.learning_rate, set model.dtype: float32, or look at these rows",
        )

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted here; the Trainer would walk all parameters for every micro-batch."""
        return 0

    # Figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the micro-batches since the last log line summed up, over all processes."""
        if "loss" in logs:
            logs.update(self._drain(logs["loss"]))
        super().log(logs, start_time)

    def _drain(self, loss: float) -> dict[str, float]:
        figures, added = self._meter.drain(self.args.device)
        steps = self.state.global_step - self.totals["steps"]
        for name, value in {**added, "loss_sum": loss * steps, "steps": steps}.items():
            self.totals[name] += value
        peak = max(self.totals.get("peak_memory_bytes", 0), figures["peak_memory_bytes"])
        self.totals["peak_memory_bytes"] = peak
        return {**figures, "tokens": self.totals["tokens"], "seconds": self.totals["seconds"]}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Accuracy and loss over all validation groups, the same for any batch size and number of processes."""
        started = time.perf_counter()
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        model = RewardModel(self.model_wrapped if sharded else self.model, self._packing, sharded=sharded)
        parts, groups = self._parts, self._parts.validation
        rewards = score_groups(model, groups, parts.renderer.pad_id, parts.tokens_per_batch, notify=parts.notify)
        preferences = [[(p.better, p.worse) for p in group.preferences] for group in groups]
        gaps = reward_gaps(rewards, preferences, [group.id for group in groups]).gaps
        ranking = ranking_accuracy(gaps)
        figures = {f"{metric_key_prefix}_accuracy": ranking.accuracy, f"{metric_key_prefix}_loss": ranking.loss}
        metrics = {name: value for name, value in figures.items() if value is not None}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._meter.pause(started)
        return metrics

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The Trainer's, when a resumed run has its first step before it; a validation still due comes here.

        A run that a signal stops puts the checkpoint first, so as to end soon.
        """
        super()._load_rng_state(checkpoint)
        made = (line for line in self.state.log_history if line["step"] == self.state.global_step)
        if self._parts.schedule.validates(self.state) and not any("eval_loss" in line for line in made):
            self._determine_best_metric(self._evaluate(None, None), None)
            self._save_checkpoint(self.model_wrapped, None)
            self._parts.selection.stop_if_stale(self.state)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return self._parts.selection.judge(self.state, metrics)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for a checkpoint: the final model gets its card from rmtrain.reporting."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink()  # a pickle that holds the hub token in clear
            config = self.accelerator.unwrap_model(self.model).config
            write_companions(config, self._parts.renderer, folder, self._parts.scoring, self._parts.record)
            seal(folder, own=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the Trainer write into a staging folder; verify, commit and only then rotate."""
        root = Path(self.args.output_dir)
        staging = root / STAGING
        name = f"checkpoint-{self.state.global_step}"
        started = time.perf_counter()
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._commit(staging / name, root / name)
        except Exception as error:  # a full disk surfaces as SafetensorError, RuntimeError or OSError
            told = (error.message, error.hint) if isinstance(error, RmtrainError) else why_unwritten(error, root)
            why, hint = told or (f"{type(error).__name__}: {error}", "")
            raise RunFailedError(
                f"checkpoint {name} could not be written ({why}); earlier checkpoints are whole",
                "; ".join(filter(None, [hint, "go on with --resume"])),
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._meter.pause(started)

    def _commit(self, staged: Path, target: Path) -> None:
        best = self.state.best_global_step
        if best is not None:
            self.state.best_model_checkpoint = str(target.with_name(f"checkpoint-{best}"))
            self.state.save_to_json(str(staged / "trainer_state.json"))
        check_weights(staged, self._shapes)
        manifest = {
            "step": self.state.global_step,
            "processes": self.args.world_size,
            "fingerprint": self._parts.fingerprint,
            "totals": self.totals,
            "averages": self.averages,
        }
        scaled = getattr(self.accelerator, "scaler", None) is not None
        strategy = self._parts.fingerprint["distributed.strategy"]
        commit(staged, target, manifest, state_files(strategy, self.args.world_size, scaled))
        rotate(target.parent, self.state.global_step, self._parts.keep_checkpoints, [best] if best is not None else [])
