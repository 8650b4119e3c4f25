"""The runs of a sweep: finished ones are found, the others are resumed or started, each by a command of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from rmtrain.errors import InputError, Interrupted, RunFailedError
from rmtrain.recipe.grid import Setting
from rmtrain.recipe.schema import Recipe
from rmtrain.runs import list_runs
from rmtrain.training.checkpointing import numbered
from rmtrain.training.choices import as_begun, recorded_recipe

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: a setting with one seed."""

    setting: Setting
    seed: int
    recipe: Recipe
    folder: Path  # parent of the sweep's runs

    @property
    def name(self) -> str:
        """The run in words."""
        return f"setting {self.setting.number} ({self.setting.label}), seed {self.seed}"

    def finished(self) -> Path | None:
        """The newest finished run of this recipe under the folder."""
        return finished_run(self.recipe, self.folder)

    def arguments(self) -> list[str]:
        """The arguments of the command that trains it: a new run, or one that is resumed from its checkpoint."""
        if begun := begun_run(self.recipe, self.folder):
            return ["train", "--resume", str(begun)]
        own = (f"run.seed={self.seed}", f"run.folder={self.folder}")
        return ["train", str(self.setting.loaded.path), *self.setting.overrides, *own]


def plan(settings: Sequence[Setting], seeds: int, folder: Path) -> list[Planned]:
    """The runs of a grid, the first seed of all settings first, so that a sweep stopped early compares them all."""
    runs = [(setting, setting.with_seed(place)) for place in range(seeds) for setting in settings]
    return [Planned(setting, recipe.run.seed, recipe, folder) for setting, recipe in runs]


def finished_run(recipe: Recipe, folder: Path) -> Path | None:
    """The newest finished run of a recipe under a folder, whatever its name."""
    return next((run for run, state in _runs_of(recipe, folder) if state == "finished"), None)


def begun_run(recipe: Recipe, folder: Path) -> Path | None:
    """The newest run of a recipe under a folder that has a checkpoint to resume from."""
    return next((run for run, _ in _runs_of(recipe, folder) if numbered(run / "checkpoints")), None)


def _runs_of(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, str]]:
    for run, manifest in reversed(list_runs(folder)):
        if (recorded := _recorded(run)) is not None:
            named = recorded.run.model_copy(update={"name": recipe.run.name, "folder": recipe.run.folder})
            if recorded.model_copy(update={"run": named}) == as_begun(recipe, recorded):
                yield run, str(manifest["state"])


_recorded = cache(recorded_recipe)  # finished and begun runs are listed for every run of a sweep


@dataclass(frozen=True)
class Workers:
    """Runs commands of rmtrain, some beside each other; each has one of the devices to itself."""

    number: int  # how many commands run at a time
    devices: Sequence[str]  # ids for CUDA_VISIBLE_DEVICES, one a worker; empty: every command sees all
    logs: Path  # folder for what commands say that run beside others; one that runs alone says it here
    notify: Notify
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def train(self, runs: Sequence[Planned]) -> list[Planned]:
        """Train the runs that are not finished; returns those that failed.

        Raises:
            InputError: a command refused its input; nothing else is started then.
            KeyboardInterrupt: a command was interrupted.
        """
        waiting = [run for run in runs if run.finished() is None]
        self.notify(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done already")
        free = SimpleQueue[str]()
        for place in range(self.number):
            free.put(self.devices[place] if self.devices else "")

        def train_one(number: int, run: Planned) -> int:
            device = free.get()
            try:
                self.notify(f"run {number} of {len(waiting)}: {run.name}")
                return self._command(run.arguments(), device, f"setting{run.setting.number}-seed{run.seed}")
            finally:
                free.put(device)

        pool = ThreadPoolExecutor(self.number)
        try:
            jobs = [pool.submit(train_one, *job) for job in enumerate(waiting, start=1)]
            return [run for run, job in zip(waiting, jobs, strict=True) if not self._done(run, job.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._stop()
            raise
        finally:
            pool.shutdown()

    def evaluate(self, run: Path, split: str) -> None:
        """Score a split with a run's model.

        Raises:
            RunFailedError: the command failed.
        """
        if self.run(["eval", "--ckpt", str(run), "--split", split], f"{run.name}-{split}"):
            raise RunFailedError(f"{run}: {split} could not be scored", self._said())

    def run(self, arguments: Sequence[str], name: str) -> int:
        """The exit code of one command, which writes its log to a file of this name if commands run beside each other.

        If this process is interrupted, the command is asked to stop, and may first write a checkpoint.
        """
        try:
            return self._command(arguments, self.devices[0] if self.devices else "", name)
        except BaseException:
            self._stop()
            raise

    def _done(self, run: Planned, code: int) -> bool:
        if code == InputError.exit_code:
            raise InputError(f"{run.name}: the command refused its input", self._said())
        if code == Interrupted.exit_code:
            raise KeyboardInterrupt
        if code:
            self.notify(f"{run.name} failed (exit code {code}); {self._said()}")
        return code == 0

    def _said(self) -> str:
        return "see the lines above" if self.number == 1 else f"see its file in {self.logs}"

    def _command(self, arguments: Sequence[str], device: str, name: str) -> int:
        """The exit code of a command."""
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with ExitStack() as files:
            errors = None
            if self.number > 1:
                environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.number)))
                self.logs.mkdir(parents=True, exist_ok=True)
                errors = files.enter_context(open(self.logs / f"{name}.log", "ab"))
            line = [sys.executable, "-m", "rmtrain", *arguments]
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
            self.running.append(process)
            code = process.wait()
            self.running.remove(process)
            return code

    def _stop(self) -> None:
        """Have the commands write a checkpoint and end."""
        for process in [*self.running]:
            process.terminate()
        for process in [*self.running]:
            process.wait()
        self.notify("stopped; run the same command again to continue")


def devices_for(parallel: int) -> list[str]:
    """One GPU id for each of several commands; none without GPUs, or for a single command, which uses all GPUs.

    Raises:
        InputError: there are fewer GPUs.
    """
    import torch

    count = torch.cuda.device_count()
    if parallel == 1 or count == 0:
        return []
    if parallel > count:
        raise InputError(f"--parallel {parallel}: this machine has {count} GPUs", f"use at most {count}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else list(map(str, range(count))))[:parallel]
