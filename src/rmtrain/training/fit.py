"""Which strategy a run takes, whether it fits, and what to change where it does not."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from rmtrain.errors import InputError, RunFailedError
from rmtrain.model.footprint import Census, take_census
from rmtrain.recipe.check import with_changes
from rmtrain.recipe.schema import Recipe
from rmtrain.training.engines import engine_of
from rmtrain.training.memory import GIB, Layout, Need, Workload, host_memory, need

_FITS = 0.92  # of the free memory: what is left goes to the allocator's gaps
_NAMED = 3  # overrides, where a run does not fit
_MOVES = 4  # most of them together


class Forecast:
    """What a recipe's run will take, and what it would take with other settings.

    Args:
        recipe: of the run.
        config: of its backbone.
        work: of the plan.
        processes: in all.
    """

    def __init__(self, recipe: Recipe, config: PretrainedConfig, work: Workload, processes: int) -> None:
        self.recipe, self.work, self.processes = recipe, work, processes
        self._config, self._counted = config, dict[str, Census]()

    def need(self, layout: Layout, recipe: Recipe | None = None, work: Workload | None = None) -> Need:
        """Under a layout, with other settings if some are given."""
        recipe, work = recipe or self.recipe, work or self.work
        limit = recipe.optim.tokens_per_microbatch
        if limit is not None and limit != self.recipe.optim.tokens_per_microbatch:
            work = work._replace(largest=max(work.longest, min(work.largest, limit)))
        return need(self._census(recipe), recipe, work, layout, self.processes)

    def _census(self, recipe: Recipe) -> Census:
        key = repr((recipe.model, recipe.lora))
        if key not in self._counted:
            self._counted[key] = take_census(self._config, recipe.model, recipe.lora)
        return self._counted[key]

    def layouts(self) -> dict[Layout, Need]:
        """Every layout that these processes and this recipe's other settings allow."""
        names = ["none"] if self.processes == 1 else ["ddp"]
        found = {Layout(name): self.need(Layout(name)) for name in names}
        pairs = [("zero2", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")]
        if self.processes > 1:
            pairs += [("fsdp", "none"), ("fsdp", "all")]
        for strategy, offload in pairs:
            changes = {"distributed.strategy": strategy, "distributed.offload": offload}
            if (changed := with_changes(self.recipe, changes)) is not None:
                found[Layout(strategy, offload)] = self.need(Layout(strategy, offload), changed)
        return found

    def choose(self, room: int | None, recipe: Recipe | None = None) -> tuple[Layout, str]:
        """The layout of a run and why: the recipe's own, or for auto the least sharding that fits.

        Args:
            room: free bytes of the fullest device; None where there is no GPU.
            recipe: with other settings.
        """
        recipe = recipe or self.recipe
        wanted = engine_of(recipe, self.processes)
        if recipe.distributed.strategy != "auto" or recipe.distributed.deepspeed_config or self.processes == 1:
            reason = "one process" if wanted == "none" else "the recipe says so"
            return Layout(wanted, recipe.distributed.offload if wanted != "none" else "none"), reason
        if room is None:
            return Layout("ddp"), "there is no GPU whose memory could be asked"
        candidates = [Layout("ddp")]
        for strategy in ("zero2", "zero3", "fsdp"):
            if with_changes(recipe, {"distributed.strategy": strategy}) is not None:
                candidates.append(Layout(strategy))
        reasons = []
        for layout in candidates:
            peak = self.need(layout, recipe).peak
            if peak is None:
                return Layout("ddp"), "the activations of this architecture can't be predicted"
            reasons.append(f"{layout} takes {peak / GIB:.1f} GiB")
            if peak <= _FITS * room:
                return layout, f"{', '.join(reasons)} of the {room / GIB:.1f} GiB free on a GPU"
        least = min(candidates, key=lambda layout: self.need(layout, recipe).peak or 0)
        return least, f"{', '.join(reasons)}: more than the {room / GIB:.1f} GiB free on a GPU; {least} is the least"

    def peak(self, room: int | None, recipe: Recipe | None = None) -> int | None:
        """Of the layout that would be chosen."""
        return self.need(self.choose(room, recipe)[0], recipe).peak

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
        moves = [*self._mild(), *self._hard()]
        return self._search(moves, self.peak(room), _FITS * room, lambda changed: self.peak(room, changed))

    def milder(self, layout: Layout) -> list["Saving"]:
        """Overrides with which a run that ran out of memory can be resumed: none changes what is learnt.

        It took more than was predicted, and there was no more: what fits is predicted to take clearly less.
        """
        work = self.work._replace(scoring=0)
        before = self.need(layout, work=work).peak
        if before is None:
            possible = (changes for changes in self._mild() if with_changes(self.recipe, changes) is not None)
            return [Saving(changes, None) for changes in possible][:_NAMED]
        moves = list(self._mild())
        return self._search(moves, before, _FITS * before, lambda changed: self.need(layout, changed, work).peak)

    def _search(
        self,
        moves: Sequence[dict[str, Any]],
        before: int | None,
        most: float,
        peak_of: Callable[[Recipe], int | None],
    ) -> list["Saving"]:
        found = list[Saving]()
        for size in range(1, _MOVES + 1):
            for combination in itertools.combinations(moves, size):
                changes = {key: value for move in combination for key, value in move.items()}
                if len(changes) < sum(map(len, combination)) or any(
                    all(changes.get(k) == v for k, v in known.changes.items()) for known in found
                ):
                    continue
                changed = with_changes(self.recipe, changes)
                peak = peak_of(changed) if changed is not None else None
                if before is not None and peak is not None and peak <= most:
                    found.append(Saving(changes, before - peak))
                    if len(found) == _NAMED:
                        return found
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
    return RunFailedError(f"out of memory at step {step}: {str(error).splitlines()[0]}", hint)
