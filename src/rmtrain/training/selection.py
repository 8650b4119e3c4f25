"""Validation during training: which checkpoint becomes the final model, and when a run stops early."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmtrain.data.prepare import ReadySplit
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.metrics.rankings import ranking_accuracy, reward_gaps
from rmtrain.model.compiling import uncompiled
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Recipe
from rmtrain.scoring.batches import score_groups
from rmtrain.training.checkpointing import numbered

# validations before and after a change of these can't be compared
_SAME_ROWS = ("rows of validation", "evaluation.limit", "data.max_length", "rendering")


class StoppedEarly(Exception):  # noqa: N818 - it is no error
    """Ends a run that no longer improves, where the Trainer would make another step."""


class Selection(TrainerCallback):  # type: ignore[misc]
    """Keeps the step of the best validation in the Trainer's state, and stops after too many without a better one.

    All of it follows from the validations in the state's log, which a checkpoint holds: every process decides alike,
    and a resumed run decides as an uninterrupted one.

    Args:
        by: accuracy, mean_accuracy (over a mixture's entries), loss, or last; of equal accuracies the lower loss is
            better.
        stop_after: validations without a better one; None never stops.
        changed: keys in which a resumed run differs from its checkpoint.
    """

    def __init__(
        self,
        by: str,
        stop_after: int | None,
        changed: Collection[str],
        checkpoints: Path,
        notify: Callable[[str], None],
    ) -> None:
        self.by, self.stop_after, self.notify = by, stop_after, notify
        self.changed, self.checkpoints = changed, checkpoints

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Choose again if a resumed run has another rule or other rows; stop if the run had already stopped."""
        if self.by == "last":
            self._choose(state, [])
        elif any(key in self.changed for key in _SAME_ROWS):
            state.log_history = [line for line in state.log_history if "eval_loss" not in line]
            self._choose(state, [])
            self.notify(f"validation has changed: the best checkpoint is chosen anew from step {state.global_step} on")
        elif "evaluation.select" in self.changed:
            kept = [step for step, _ in numbered(self.checkpoints) if step <= state.global_step]
            self._choose(state, [line for line in _validations(state) if line["step"] in kept])
            best = f"step {state.best_global_step}" if state.best_global_step else "none"
            self.notify(f"of the kept checkpoints, {best} has the best validation {_in_words(self.by)}")
        self.stop_if_stale(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after too many validations without a better one; the step's checkpoint is written by now."""
        self.stop_if_stale(state, control)

    def judge(self, state: TrainerState, metrics: dict[str, float]) -> bool:
        """Take a new validation into account; returns whether it is the best so far."""
        if self.by == "last":
            return False
        best = next((line for line in _validations(state) if line["step"] == state.best_global_step), None)
        better = best is None or self._rank(metrics) > self._rank(best)
        if best is not None and self.by != "loss" and self._rank(metrics)[0] == self._rank(best)[0]:
            self.notify(
                f"validation {_in_words(self.by)} is the same at steps {best['step']} and {state.global_step}: "
                f"step {state.global_step if better else best['step']} is chosen, whose loss is not higher"
            )
        if better:
            state.best_metric, state.best_global_step = self._metric(metrics), state.global_step
        return better

    def is_stale(self, state: TrainerState) -> bool:
        """Whether none of the last `stop_after` validations was the best."""
        later = {line["step"] for line in _validations(state) if line["step"] > (state.best_global_step or 0)}
        return self.stop_after is not None and len(later) >= self.stop_after

    def stop_if_stale(self, state: TrainerState, control: TrainerControl | None = None) -> None:
        """Have the Trainer stop at the end of this step, or, between steps, raise."""
        if not self.is_stale(state) or state.global_step >= state.max_steps:
            return
        self.notify(
            f"stopped early at step {state.global_step} of {state.max_steps}: {self.stop_after} validations without "
            f"a better {_in_words(self.by)} than that of step {state.best_global_step}"
        )
        if control is None:
            raise StoppedEarly
        control.should_training_stop = True

    def _choose(self, state: TrainerState, lines: list[dict[str, float]]) -> None:
        best = max(lines, key=self._rank, default=None)
        state.best_metric = self._metric(best) if best else None
        state.best_global_step = int(best["step"]) if best else None

    def _metric(self, figures: dict[str, float]) -> float:
        """The figure that validations are compared by; without entries, the mean over them is the accuracy."""
        return figures.get(f"eval_{self.by}", figures["eval_accuracy"])

    def _rank(self, figures: dict[str, float]) -> tuple[float, ...]:
        loss = -figures["eval_loss"]
        return (loss,) if self.by == "loss" else (self._metric(figures), loss)


def _in_words(by: str) -> str:
    return by.replace("_", " ")


def _validations(state: TrainerState) -> list[dict[str, float]]:
    return [line for line in state.log_history if "eval_loss" in line]


class ValidationGroups(NamedTuple):
    """The groups that are scored during training, and the entry of a mixture that each is of."""

    groups: Sequence[TokenizedGroup]
    entries: Sequence[str]  # names; empty where the split is no mixture


class Validation(NamedTuple):
    """What is scored during training, how often, and the choice that follows from it."""

    rows: ValidationGroups
    every: int  # steps; 0 is never
    tokens_per_batch: int
    selection: Selection

    def figures(self, model: RewardModel, pad_id: int, notify: Callable[[str], None]) -> dict[str, float]:
        """Accuracy and loss over all groups, the same for any batch size and number of processes.

        Of a mixture also the accuracy of each entry, and their mean, in which a large entry weighs as much as a small.
        """
        groups = self.rows.groups
        with uncompiled(model.module):
            rewards = score_groups(model, groups, pad_id, self.tokens_per_batch, notify=notify)
        preferences = [[(p.better, p.worse) for p in group.preferences] for group in groups]
        scored = reward_gaps(rewards, preferences, [group.id for group in groups])
        ranking = ranking_accuracy(scored.gaps)
        figures = {"accuracy": ranking.accuracy, "loss": ranking.loss}
        if self.rows.entries:
            entries = np.asarray(self.rows.entries, dtype=object)[scored.groups]
            of_entries = {
                name: ranking_accuracy(scored.gaps[entries == name]).accuracy for name in dict.fromkeys(entries)
            }
            figures["mean_accuracy"] = float(np.mean(list(of_entries.values())))
            figures |= {f"accuracy/{name}": accuracy for name, accuracy in of_entries.items()}
        return {name: value for name, value in figures.items() if value is not None}

    def is_due(self, state: TrainerState) -> bool:
        """Whether the last step should have been validated, but a signal stopped the run before that."""
        step = state.global_step
        made = any("eval_loss" in line and line["step"] == step for line in state.log_history)
        return self.every > 0 and not made and (step % self.every == 0 or step >= state.max_steps)


def validation_groups(recipe: Recipe, splits: Mapping[str, ReadySplit]) -> ValidationGroups:
    """The groups that are scored during training: the validation split, or the recipe's limit of it, evenly spread."""
    if "validation" not in splits or recipe.evaluation.every == 0:
        return ValidationGroups([], [])
    split = splits["validation"]
    limit = min(recipe.evaluation.limit or len(split.tokens), len(split.tokens))
    places = [i * len(split.tokens) // limit for i in range(limit)]
    names = [part.data.entry.name for part in split.parts for _ in range(len(part.tokens))] if split.data.mixed else []
    return ValidationGroups([split.tokens.group(i) for i in places], [names[i] for i in places] if names else [])
