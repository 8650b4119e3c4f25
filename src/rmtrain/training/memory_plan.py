"""Which strategy a run uses, whether it fits into memory, and what to change where it does not."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from rmtrain.errors import InputError, RunFailedError, command_line
from rmtrain.json_values import JsonObject
from rmtrain.model.activations import Activations, saved_by_compiling, trial
from rmtrain.model.batch import GroupSize, batch_tokens
from rmtrain.model.compiling import compiler_obstacle
from rmtrain.model.devices import free_memory, gather_values, is_out_of_memory, process_state
from rmtrain.model.host_memory import host_memory
from rmtrain.model.language_head import head_shape
from rmtrain.model.memory import MASTER_BYTES, ModelSize, measure_model
from rmtrain.recipe.check import with_changes
from rmtrain.recipe.schema import ModelSection, Recipe
from rmtrain.training.memory import GIB, MemoryEstimate, Sharding, TokenLoad, estimate_states
from rmtrain.training.strategies import strategy_of

FITS = 0.92  # share of the free memory that a run may take: the allocator leaves gaps
_SUGGESTED = 3  # overrides, where a run does not fit
_MEASURED: JsonObject = {}  # models, by their settings: each suggestion asks for some again
# bytes that the first step adds: code of the libraries, the Trainer, and buffers of matrix products; an upper bound of
# what was seen with a model of two layers and with SmolLM2-135M
_FIRST_USE = 64 << 20
_TRIED = 4  # groups of the largest micro-batch on which its memory is measured
_STASH = 5  # tensors that TRL's activation offloading leaves on the device while they travel


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a recipe's run takes, and that it would take with other settings."""

    recipe: Recipe
    config: PretrainedConfig  # the backbone's
    load: TokenLoad
    processes: int  # in all
    free: int | None  # bytes of the fullest GPU; None without GPUs
    resident: int = 0  # bytes that the process holds before the model is loaded; 0 with GPUs

    def under(self, changes: JsonObject) -> "MemoryPlan | None":
        """The plan with overrides of the recipe; None if they contradict it."""
        recipe = with_changes(self.recipe, changes)
        if recipe is None:
            return None
        load, tokens = self.load, recipe.optim.tokens_per_microbatch
        if "optim.tokens_per_microbatch" in changes and tokens is not None:
            load = load._replace(largest=max(load.longest, min(load.largest, tokens)))
        if "evaluation.tokens_per_batch" in changes:
            load = load._replace(scoring=min(load.scoring, recipe.evaluation.tokens_per_batch))
        return replace(self, recipe=recipe, load=load)

    def estimate(self, sharding: Sharding) -> MemoryEstimate:
        """Bytes under a strategy."""
        optim = self.recipe.optim
        size = self._once(measure_model, self.config, self._uncompiled, self.recipe.lora)
        states = estimate_states(size, optim.optimizer, sharding, self.processes)
        if self.free is None:
            states = states._replace(process=self.resident + _FIRST_USE)
        text = self.recipe.loss.text_loss > 0
        if text:  # the language head, whole on every device
            head = math.prod(head_shape(self.config)) * getattr(torch, self.recipe.model.dtype).itemsize
            states = states._replace(parameters=states.parameters + head)
        batch = self.load.batch[:_TRIED] or (GroupSize(0, (self.load.largest,)),)
        training = self._trial(batch, self.load.largest, optim.gradient_checkpointing, text)
        if training is not None:
            training = training.without(self._saved_by_compiling(batch, sharding))
        scoring = self._trial((GroupSize(0, (self.load.longest,)),), self.load.scoring, None)
        if training is None or scoring is None:
            return states
        moved = 0
        if optim.activation_offloading and self.free is not None:
            moved = max(0, training.kept - _STASH * training.largest)
        activations = max(training.peak - moved, scoring.peak) + 2 * size.dequantized_bytes
        estimate = states._replace(activations=activations, peak=states.states + activations, host=states.host + moved)
        return estimate if self.free is not None else self._on_cpu(estimate, size)

    def _on_cpu(self, estimate: MemoryEstimate, size: ModelSize) -> MemoryEstimate:
        """Add what counts only on a CPU, where tensors share their memory with everything else in the process.

        AdamW allocates two tensors as large as the one that it updates, after all activations are freed. Weights are
        loaded from mapped files, whose pages count until all tensors exist.
        """
        updating = 2 * MASTER_BYTES * max((tensor.numel for tensor in size.trained), default=0)
        activations = max(estimate.activations or 0, updating)
        stored = (getattr(self.config, "dtype", None) or torch.float32).itemsize * size.elements
        loading = estimate.process + estimate.parameters + stored
        return estimate._replace(
            activations=activations, loading=loading, peak=max(estimate.states + activations, loading)
        )

    def _trial(
        self, batch: Sequence[GroupSize], tokens: int, checkpointing: str | None, text: bool = False
    ) -> Activations | None:
        packing, settings = self.load.packing, (self._uncompiled, self.recipe.lora)
        measured: Activations | None = self._once(trial, self.config, *settings, batch, packing, checkpointing, text)
        return measured and measured.times(tokens / batch_tokens(batch, packing))

    @property
    def _uncompiled(self) -> ModelSection:
        """The recipe's section, the same whether its layers are compiled or not: what is measured once serves both."""
        return self.recipe.model.model_copy(update={"compile": False})

    def _saved_by_compiling(self, batch: Sequence[GroupSize], sharding: Sharding) -> int:
        """Bytes that compiled layers do not keep; where a layer is recomputed, it keeps its input alone."""
        recipe, packing = self.recipe, self.load.packing
        compiled = recipe.model.compile is True and sharding.strategy != "zero3" and compiler_obstacle() is None
        if not compiled or recipe.optim.gradient_checkpointing != "none":
            return 0
        measured: int = self._once(saved_by_compiling, self.config, self._uncompiled, recipe.lora, batch, packing)
        return round(measured * self.load.largest / batch_tokens(batch, packing))

    def _once(self, function: Any, config: PretrainedConfig, *settings: Any) -> Any:
        key = repr((function.__name__, config.to_json_string(), settings))
        if key not in _MEASURED:
            _MEASURED[key] = function(config, *settings)
        return _MEASURED[key]

    def estimates(self) -> Iterator[tuple[Sharding, MemoryEstimate]]:
        """Every strategy that these processes and the recipe's other settings allow, the least sharding first."""
        plain = Sharding("none" if self.processes == 1 else "ddp")
        yield plain, self.estimate(plain)
        pairs = [("zero2", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")]
        if self.processes > 1:
            pairs += [("fsdp", "none"), ("fsdp", "all")]
        for strategy, offload in pairs:
            changed = self.under({"distributed.strategy": strategy, "distributed.offload": offload})
            if changed is not None:
                yield Sharding(strategy, offload), changed.estimate(Sharding(strategy, offload))

    def choose(self) -> tuple[Sharding, str]:
        """The strategy of the run and why: the recipe's own, or for auto the least sharding that fits."""
        section, wanted, free = self.recipe.distributed, strategy_of(self.recipe, self.processes), self.free
        if section.strategy != "auto" or section.deepspeed_config or self.processes == 1:
            reason = "one process" if wanted == "none" else "the recipe says so"
            return Sharding(wanted, section.offload if wanted != "none" else "none"), reason
        if free is None:
            return Sharding("ddp"), "no GPU whose memory could limit it"
        peaks: dict[Sharding, int] = {}
        for sharding, estimate in self.estimates():
            if estimate.peak is None:
                return Sharding("ddp"), "the activations of this architecture can't be predicted"
            if sharding.offload != "none":
                continue
            peaks[sharding] = estimate.peak
            if estimate.peak <= FITS * free:
                return sharding, f"{_listed(peaks)} of the {free / GIB:.1f} GiB free on a GPU"
        least = min(peaks, key=peaks.__getitem__)
        return least, f"{_listed(peaks)}: more than the {free / GIB:.1f} GiB free on a GPU; {least} needs the least"

    def peak(self) -> int | None:
        """Bytes under the strategy that would be chosen."""
        return self.estimate(self.choose()[0]).peak

    def require_fit(self) -> None:
        """Refuse a run that can't fit into the GPUs' free memory, or into the memory of this machine.

        Raises:
            InputError: names overrides that would fit, and what each saves.
        """
        sharding, _ = self.choose()
        estimate = self.estimate(sharding)
        local, on_host = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes)), estimate.host
        if self.free is None:
            on_host += estimate.peak or estimate.states
        host = local * on_host
        if host > host_memory():
            held = "holds" if self.free is not None else f"takes, at {self.load.largest:,} tokens a micro-batch,"
            raise InputError(
                f"the run {held} {host / GIB:.1f} GiB of the host's memory on {local} processes ({sharding}), but this "
                f"machine has {host_memory() / GIB:.1f} GiB",
                self._hint(host_memory() // local) if self.free is None else "use fewer processes, or a smaller model",
            )
        if self.free is not None and estimate.peak is not None and estimate.peak > self.free:
            raise InputError(
                f"the run takes {estimate.peak / GIB:.1f} GiB a GPU ({sharding}; {self.load.largest:,} tokens a "
                f"micro-batch), but only {self.free / GIB:.1f} GiB are free",
                self._hint(self.free),
            )

    def _hint(self, free: int) -> str:
        fitting = self.suggestions(free)
        if not fitting:
            return "no setting makes it fit: use a smaller model, or more memory"
        return f"{'this makes' if len(fitting) == 1 else 'any of these makes'} it fit:\n{list_overrides(fitting)}"

    def suggestions(self, free: int) -> list["Saving"]:
        """Overrides that make the run fit, the mildest first: single ones, or where none is enough, several at once."""
        moves, before = [*self._mild(), *self._hard()], self.peak()
        if before is None:
            return []
        savings: list[Saving] = []
        for changes in moves:
            if (peak := self._peak_under(changes)) is not None and peak <= FITS * free:
                savings.append(Saving(changes, before - peak))
        together: JsonObject = {}
        for changes in moves if not savings else ():
            peak = self._peak_under(together | changes)
            if peak is not None and peak < (self._peak_under(together) or before):
                together |= changes
                if peak <= FITS * free:
                    return [Saving(together, before - peak)]
        return savings[:_SUGGESTED]

    def _peak_under(self, changes: JsonObject) -> int | None:
        changed = self.under(changes)
        return changed.peak() if changed is not None else None

    def milder(self, sharding: Sharding) -> list["Saving"]:
        """Overrides with which a run that ran out of memory can be resumed, none of which changes the training's
        result.

        The run took more than predicted, so only overrides with a clearly lower prediction are named.
        """
        training = replace(self, load=self.load._replace(scoring=0))
        before, savings = training.estimate(sharding).stepping, list[Saving]()
        for changes in self._mild():
            changed = training.under(changes)
            peak = changed.estimate(sharding).stepping if changed is not None else None
            if before is None and changed is not None:
                savings.append(Saving(changes, None))
            elif before is not None and peak is not None and peak <= FITS * before:
                savings.append(Saving(changes, before - peak))
        return savings[:_SUGGESTED]

    def _mild(self) -> Iterator[JsonObject]:
        optim, load = self.recipe.optim, self.load
        if optim.gradient_checkpointing == "none":
            yield {"optim.gradient_checkpointing": "selective"}
        if optim.gradient_checkpointing != "full":
            yield {"optim.gradient_checkpointing": "full"}
        for tokens in dict.fromkeys(max(load.largest // parts, load.longest) for parts in (2, 4)):
            if tokens < load.largest:
                yield {"optim.tokens_per_microbatch": tokens}
        if not optim.activation_offloading and torch.cuda.is_available():
            yield {"optim.activation_offloading": True}

    def _hard(self) -> Iterator[JsonObject]:
        if self.recipe.evaluation.tokens_per_batch > self.load.longest:
            yield {"evaluation.tokens_per_batch": self.load.longest}
        if self.processes > 1:
            yield {"distributed.strategy": "zero2"}
            yield {"distributed.strategy": "zero3"}
        yield {"distributed.strategy": "zero2", "distributed.offload": "optimizer"}
        yield {"distributed.strategy": "zero3", "distributed.offload": "all"}
        if self.recipe.optim.optimizer == "adamw":
            yield {"optim.optimizer": "paged_adamw_8bit"}
        if self.recipe.lora is None:
            yield {"lora": {}}
        if self.recipe.model.quantization == "none":
            yield {"model.quantization": "nf4"}


class Saving(NamedTuple):
    """Overrides, and the bytes a device that they save; None where that can't be predicted."""

    changes: JsonObject
    bytes: int | None

    def __str__(self) -> str:
        words = " ".join(f"{key}={str(value).lower()}" for key, value in self.changes.items())
        return words if self.bytes is None else f"{words}  (saves {self.bytes / GIB:.1f} GiB)"


def _listed(peaks: dict[Sharding, int]) -> str:
    return ", ".join(f"{sharding} takes {peak / GIB:.1f} GiB" for sharding, peak in peaks.items())


def list_overrides(savings: Sequence[Saving], command: str = "") -> str:
    """Overrides as command-line arguments, one per line, after the command if one is given."""
    return "\n".join(f"    {command}{saving}" for saving in savings)


def memory_failure(
    error: BaseException, plan: MemoryPlan, sharding: Sharding, step: int, folder: Path
) -> RunFailedError | None:
    """The error to show if memory ran out in training, with settings to resume it with; None for any other error."""
    if not is_out_of_memory(error):
        return None
    savings, command = plan.milder(sharding), command_line("train", "--resume", folder)
    hint = f"resume with any of:\n{list_overrides(savings, f'{command} ')}"
    if not savings:
        hint = f"resume on a machine with more memory: {command}"
    return RunFailedError(f"out of memory at step {step}: {str(error).splitlines()[0]}", hint)


def least_free_memory() -> int | None:
    """Free bytes of the fullest GPU of all processes, or of this machine for a single process; None without GPUs."""
    if not torch.cuda.is_available():
        return None
    state = process_state()
    devices = [state.device.index] if state.num_processes > 1 else range(torch.cuda.device_count())
    return int(min(gather_values([free_memory(torch.device("cuda", device)) for device in devices])))
