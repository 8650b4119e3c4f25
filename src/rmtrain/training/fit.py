"""Which strategy a run takes, whether it fits, and what to change where it does not."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from rmtrain.errors import InputError, RunFailedError, first_line
from rmtrain.model.footprint import Census, take_census
from rmtrain.recipe.check import with_changes
from rmtrain.recipe.schema import Recipe
from rmtrain.training.engines import engine_of
from rmtrain.training.memory import GIB, Layout, Need, Workload, host_memory, need

_FITS = 0.92  # of the free memory: what is left goes to the allocator's gaps
_NAMED = 3  # overrides, where a run does not fit
_MOVES = 4  # most of them together


@dataclass(frozen=True)
class Forecast:
    """What a recipe's run will take, and what it would take with other settings."""

    recipe: Recipe
    config: PretrainedConfig  # of its backbone
    work: Workload  # of the plan
    processes: int  # in all
    counted: dict[str, Census] = field(default_factory=dict)  # models looked at already

    def under(self, changes: dict[str, Any]) -> "Forecast | None":
        """With overrides of the recipe; None if they contradict it."""
        recipe = with_changes(self.recipe, changes)
        if recipe is None:
            return None
        work, tokens = self.work, recipe.optim.tokens_per_microbatch
        if "optim.tokens_per_microbatch" in changes and tokens is not None:
            work = work._replace(largest=max(work.longest, min(work.largest, tokens)))
        return replace(self, recipe=recipe, work=work)

    def need(self, layout: Layout) -> Need:
        """Bytes under a layout."""
        key = repr((self.recipe.model, self.recipe.lora))
        if key not in self.counted:
            self.counted[key] = take_census(self.config, self.recipe.model, self.recipe.lora)
        return need(self.counted[key], self.recipe, self.work, layout, self.processes)

    def layouts(self) -> Iterator[tuple[Layout, Need]]:
        """Every layout that these processes and the recipe's other settings allow, the least sharding first."""
        plain = Layout("none" if self.processes == 1 else "ddp")
        yield plain, self.need(plain)
        pairs = [("zero2", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")]
        if self.processes > 1:
            pairs += [("fsdp", "none"), ("fsdp", "all")]
        for strategy, offload in pairs:
            changed = self.under({"distributed.strategy": strategy, "distributed.offload": offload})
            if changed is not None:
                yield Layout(strategy, offload), changed.need(Layout(strategy, offload))

    def choose(self, room: int | None) -> tuple[Layout, str]:
        """The layout of the run and why: the recipe's own, or for auto the least sharding that fits.

        Args:
            room: free bytes of the fullest device; None where there is no GPU.
        """
        section, wanted = self.recipe.distributed, engine_of(self.recipe, self.processes)
        if section.strategy != "auto" or section.deepspeed_config or self.processes == 1:
            reason = "one process" if wanted == "none" else "the recipe says so"
            return Layout(wanted, section.offload if wanted != "none" else "none"), reason
        if room is None:
            return Layout("ddp"), "there is no GPU whose memory could be asked"
        peaks: dict[Layout, int] = {}
        for layout, found in self.layouts():
            if found.peak is None:
                return Layout("ddp"), "the activations of this architecture can't be predicted"
            if layout.offload != "none":
                continue
            peaks[layout] = found.peak
            if found.peak <= _FITS * room:
                return layout, f"{_listed(peaks)} of the {room / GIB:.1f} GiB free on a GPU"
        least = min(peaks, key=peaks.__getitem__)
        return least, f"{_listed(peaks)}: more than the {room / GIB:.1f} GiB free on a GPU; {least} is the least"

    def peak(self, room: int | None) -> int | None:
        """Of the layout that would be chosen."""
        return self.need(self.choose(room)[0]).peak

    def require_room(self, room: int | None) -> None:
        """Refuse a run that can't fit.

        Raises:
            InputError: names overrides that would fit, and what each saves.
        """
        layout, _ = self.choose(room)
        found = self.need(layout)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes))
        host = local * (found.host if room is not None else found.states + found.host)
        if host > host_memory():
            raise InputError(
                f"the run takes {host / GIB:.1f} GiB of the host's memory on {local} processes ({layout}), and there "
                f"are {host_memory() / GIB:.1f} GiB",
                "take fewer processes, a smaller model, or lora and model.quantization",
            )
        if room is not None and found.peak is not None and found.peak > room:
            fitting = self.overrides(room)
            hint = f"any of these fits:\n{list_overrides(fitting)}" if fitting else "no setting makes it fit"
            raise InputError(
                f"the run takes {found.peak / GIB:.1f} GiB a GPU ({layout}; {self.work.largest:,} tokens at once), and "
                f"{room / GIB:.1f} GiB are free",
                hint,
            )

    def overrides(self, room: int) -> list["Saving"]:
        """The first few sets of overrides that fit, fewest and mildest first."""
        return self._search([*self._mild(), *self._hard()], _FITS * room, lambda changed: changed.peak(room))

    def milder(self, layout: Layout) -> list["Saving"]:
        """Overrides with which a run that ran out of memory can be resumed: none changes what is learnt.

        It took more than was predicted, and there was no more: what fits is predicted to take clearly less.
        """
        training = replace(self, work=self.work._replace(scoring=0))
        moves, before = list(self._mild()), training.need(layout).peak
        if before is None:
            return [Saving(changes, None) for changes in moves if self.under(changes) is not None][:_NAMED]
        return training._search(moves, _FITS * before, lambda changed: changed.need(layout).peak)

    def _search(
        self, moves: Sequence[dict[str, Any]], most: float, peak_of: Callable[["Forecast"], int | None]
    ) -> list["Saving"]:
        """Combinations of moves with which the peak is at most so many bytes, and none holds another that does."""
        before, found = peak_of(self), list[Saving]()
        sizes = range(1, _MOVES + 1)
        for combination in itertools.chain.from_iterable(itertools.combinations(moves, size) for size in sizes):
            changes = {key: value for move in combination for key, value in move.items()}
            exclusive = len(changes) < sum(map(len, combination))
            if exclusive or any(known.changes.items() <= changes.items() for known in found):
                continue
            changed = self.under(changes)
            peak = peak_of(changed) if changed is not None else None
            if before is not None and peak is not None and peak <= most:
                found.append(Saving(changes, before - peak))
            if len(found) == _NAMED:
                break
        return found

    def _mild(self) -> Iterator[dict[str, Any]]:
        optim = self.recipe.optim
        if optim.gradient_checkpointing == "none":
            yield {"optim.gradient_checkpointing": "selective"}
        if optim.gradient_checkpointing != "full":
            yield {"optim.gradient_checkpointing": "full"}
        if self.work.largest > self.work.longest:
            halves = [self.work.largest // 2**i for i in (1, 2)]
            for tokens in dict.fromkeys(max(half, self.work.longest) for half in halves):
                yield {"optim.tokens_per_microbatch": tokens}
        if not optim.activation_offloading and torch.cuda.is_available():
            yield {"optim.activation_offloading": True}

    def _hard(self) -> Iterator[dict[str, Any]]:
        if self.recipe.evaluation.tokens_per_batch > self.work.longest:
            yield {"evaluation.tokens_per_batch": self.work.longest}
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

    changes: dict[str, Any]
    bytes: int | None

    def __str__(self) -> str:
        words = " ".join(f"{key}={str(value).lower()}" for key, value in self.changes.items())
        return words if self.bytes is None else f"{words}  (saves {self.bytes / GIB:.1f} GiB)"


def _listed(peaks: dict[Layout, int]) -> str:
    return ", ".join(f"{layout} takes {peak / GIB:.1f} GiB" for layout, peak in peaks.items())


def list_overrides(savings: Sequence[Saving], command: str = "") -> str:
    """One a line, as they are typed, after the command if there is one."""
    return "\n".join(f"    {command}{saving}" for saving in savings)


def memory_failure(
    error: BaseException, forecast: Forecast, layout: Layout, step: int, folder: Path
) -> RunFailedError | None:
    """The error to show where training ended because memory ran out, with what to resume it with; else None."""
    host = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # what torch says on the CPU
    if not (isinstance(error, torch.OutOfMemoryError) or host):
        return None
    savings, command = forecast.milder(layout), f"rmtrain train --resume {folder}"
    hint = f"go on with any of:\n{list_overrides(savings, f'{command} ')}" if savings else f"go on elsewhere: {command}"
    return RunFailedError(f"out of memory at step {step}: {first_line(error)}", hint)
