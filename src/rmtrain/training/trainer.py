"""TRL's RewardTrainer on packed groups: own batches, own loss, exact validation, complete checkpoints."""

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl
from trl import RewardConfig, RewardTrainer

from rmtrain.errors import NonFiniteError, RmtrainError, RunFailedError
from rmtrain.files import why_unwritten
from rmtrain.model.batch import Targets
from rmtrain.model.devices import any_process, gather_values, lost_another
from rmtrain.model.forward import check_head
from rmtrain.model.reward_model import RewardModel
from rmtrain.training.checkpointing import STAGING, CheckpointWriter
from rmtrain.training.microbatches import Microbatch, MicrobatchDataset, packed_ahead
from rmtrain.training.objectives import Objective, RewardBatch
from rmtrain.training.optimizer import retune, separate_head, settings_by_group
from rmtrain.training.selection import Validation
from rmtrain.training.step_loss import loss_of_step, move_averages, with_text_loss
from rmtrain.training.throughput import COUNTS, Meter, measure_matrix_rate, operations_per_token

_PACKS_AHEAD = ("cuda",)  # devices that compute while a thread packs the next micro-batches
_OF_LOSS = frozenset({"preferences", "completions", "ids", "counts"})  # the model's forward does not take them
_PACKED_AHEAD = 4  # micro-batches


class GroupRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """RewardTrainer that trains on groups.

    Args:
        args: the Trainer's arguments; `output_dir` takes the checkpoints.
        data: this process's micro-batches.
        head_learning_rate: the learning rate of the score head; None is that of the rest.
    """

    def __init__(
        self,
        model: RewardModel,
        args: RewardConfig,
        data: MicrobatchDataset,
        objective: Objective,
        validation: Validation,
        checkpoints: CheckpointWriter,
        callbacks: list[TrainerCallback],
        *,
        head_learning_rate: float | None,
        notify: Callable[[str], None],
    ) -> None:
        self._data, self._objective, self._validation, self._checkpoints = data, objective, validation, checkpoints
        self._head_learning_rate, self._notify = head_learning_rate, notify
        self._staging: str | None = None
        self._step_losses: list[tuple[list[str], RewardBatch, torch.Tensor]] = []
        self._batches: Any = None  # the iterator that the Trainer takes micro-batches from, and its like with a thread
        self._ahead: Any = None
        self._step_samples: list[Microbatch] = []
        self._step_parts: list[RewardBatch] = []  # every process's, for an objective that needs the whole step
        self._observed: list[Mapping[str, torch.Tensor]] = []  # what is averaged, by micro-batch of the step
        self.averages: dict[str, float] = {}  # their averages over steps
        self.totals: dict[str, float] = dict.fromkeys([*COUNTS, "seconds", "loss_sum", "steps"], 0.0)
        rate = measure_matrix_rate(args.device, model.module.compute_dtype)
        self._meter = Meter(operations_per_token(model.module), rate)
        trained = {name: p.data for name, p in model.module.named_parameters() if p.requires_grad}
        super().__init__(
            model=model.module,
            args=args,
            train_dataset=data.split.table,
            processing_class=checkpoints.renderer.tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        for name, parameter in self.model.named_parameters():  # TRL casts what trains on a quantised base to bfloat16
            if name in trained and parameter.dtype != trained[name].dtype:
                parameter.data = trained[name].to(parameter.device)
        check_head(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokenised by rmtrain.data

    def get_train_dataloader(self) -> DataLoader[Microbatch]:
        """The process's share of the plan, in order; it is not resharded by accelerate."""
        pin = self.args.dataloader_pin_memory  # makes copies to the GPU faster
        return DataLoader(self._data, batch_size=1, collate_fn=itemgetter(0), pin_memory=pin)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step: the Trainer's, timed, and packed ahead where a GPU computes meanwhile."""
        if epoch_iterator is not self._batches:
            self._batches = self._ahead = epoch_iterator
            if self.args.device.type in _PACKS_AHEAD:
                self._ahead = packed_ahead(epoch_iterator, _PACKED_AHEAD)
        with self._meter.waiting():
            self._step_samples, count = super().get_batch_samples(self._ahead, num_batches, device)
        return self._step_samples, count

    def _prepare_inputs(self, inputs: Microbatch) -> Microbatch:
        """Copy to the device, not waiting and not casting: the Trainer would cast loss weights to DeepSpeed's dtype."""
        return send_to_device(inputs, self.args.device, non_blocking=True)  # type: ignore[no-any-return]

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimiser, with the score head in groups of its own where it has its own learning rate."""
        optimizer = super().create_optimizer(model)
        if self._head_learning_rate is not None:
            separate_head(optimizer, self.model, self._head_learning_rate)
        self._settings = settings_by_group(optimizer)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's; then the recipe's learning rates and other settings take the place of the checkpoint's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            before, now = retune(self.optimizer, self.lr_scheduler, self._settings)
            if before != now and self.state.global_step < self.state.max_steps:
                step = self.state.global_step + 1
                self._notify(f"the learning rate of step {step} jumps from {before:.3g} to {now:.3g}")

    def compute_loss(
        self, model: Any, inputs: Microbatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of a micro-batch; figures stay on the device until they are logged."""
        self._meter.begin()
        counts, ids, objective = inputs["counts"], inputs["ids"], self._objective
        if objective.whole_step and not self._step_losses:
            self._step_parts = self._rewards_of_step()
        batch = self._rewards(model, inputs)
        if objective.whole_step:
            place = self.args.process_index * len(self._step_samples) + len(self._step_losses)
            loss = loss_of_step(objective, self._step_parts, place, batch)
        else:
            loss = objective.loss(batch)
        loss = with_text_loss(loss, batch, objective.text_loss)
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

    def _rewards(self, model: Any, inputs: Microbatch, leave_out: Collection[str] = ()) -> RewardBatch:
        """A forward pass over a micro-batch, and what the objective sees of it."""
        outputs = model(**{key: value for key, value in inputs.items() if key not in {*_OF_LOSS, *leave_out}})
        preferences, completions = inputs["preferences"], inputs["completions"]
        return RewardBatch(outputs.logits, preferences, completions, outputs.states, outputs.log_probs, self.averages)

    def _rewards_of_step(self) -> list[RewardBatch]:
        """All micro-batches of a step over all processes, by one more forward pass without gradients.

        It draws the dropout masks that the pass with gradients draws again.
        """
        own = []
        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            for sample in self._step_samples:
                inputs, text = self._prepare_inputs(sample), Targets.__optional_keys__
                own.append(self._rewards(self.model_wrapped, inputs, leave_out=text).moved("cpu"))
        return [part.moved(self.args.device) for part in gather_values(own)]

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
        if not any_process(not finite):
            return
        bad = [
            ids[group]
            for ids, batch, _ in losses
            for group, x in zip(batch.completions.groups.tolist(), batch.rewards.tolist(), strict=True)
            if x - x != 0
        ]
        bad = gather_values(bad)
        rows = f"in groups {', '.join(dict.fromkeys(bad))}" if bad else "in no single group: the gradients overflowed"
        taken = self.is_deepspeed_enabled and norm is not None  # within the backward pass
        raise NonFiniteError(
            f"step {self.state.global_step + 1}: loss or gradient norm is not finite ({rows}); the step was "
            f"{'taken by DeepSpeed, and nothing of it is saved' if taken else 'not taken'}",
            "lower optim.learning_rate, set model.dtype: float32, or look at these rows",
        )

    def floating_point_ops(self, inputs: Microbatch) -> int:
        """Not counted here; the Trainer would walk all parameters for every micro-batch."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of all micro-batches since the last log line, over all processes."""
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
        model = RewardModel(self.model_wrapped if sharded else self.model, self._data.packing, sharded=sharded)
        figures = self._validation.figures(model, self._data.pad_id, self._notify)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._meter.pause(started)
        return metrics

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The Trainer's, called once all of a checkpoint is loaded and right before the first step of a resumed run.

        A run that a signal stopped left out the validation of its last step, to end soon: it is made here.
        """
        super()._load_rng_state(checkpoint)
        if self._validation.is_due(self.state):
            self._determine_best_metric(self._evaluate(None, None), None)
            self._save_checkpoint(self.model_wrapped, None)
            self._validation.selection.stop_if_stale(self.state)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return self._validation.selection.judge(self.state, metrics)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for a checkpoint: the final model gets its card from rmtrain.reporting."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            config = self.accelerator.unwrap_model(self.model).config
            self._checkpoints.complete(Path(output_dir or self.args.output_dir), config)

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
                scaled = getattr(self.accelerator, "scaler", None) is not None
                figures = {"totals": self.totals, "averages": self.averages}
                self._checkpoints.commit(staging / name, root / name, self.state, figures, scaled)
        except Exception as error:  # a full disk surfaces as SafetensorError, RuntimeError or OSError
            if lost_another(error):  # which says why nothing was written
                raise
            known = (error.message, error.hint) if isinstance(error, RmtrainError) else why_unwritten(error, root)
            why, hint = known or (f"{type(error).__name__}: {error}", "")
            raise RunFailedError(
                f"checkpoint {name} could not be written ({why}); earlier checkpoints are complete",
                "; ".join(filter(None, [hint, "continue with --resume"])),
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._meter.pause(started)
