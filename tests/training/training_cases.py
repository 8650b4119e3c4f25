"""How the training tests drive a run: tiny recipes, made splits, and processes forked off one that has imported all."""

import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measured
from conftest import make_groups, make_tokenizer

MAX_LENGTH = 64


class Recorder:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lines: list[dict[str, Any]] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def progress(self, task: str, done: int, total: int) -> None:
        pass

    def metrics(self, figures: dict[str, Any]) -> None:
        self.lines.append(figures)


def make_recipe(base: Path, folder: Path, **changes: Any) -> Any:
    """A small LoRA recipe; `changes` are `section__key=value`, and `lora=None` is full fine-tuning."""
    from rmtrain.recipe.schema import Recipe

    values: dict[str, Any] = {
        "model": {"name": str(base), "dtype": "float32"},
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
        "data": {"source": "demo", "max_length": MAX_LENGTH},
        "optim": {"learning_rate": 3e-3, "global_batch_size": 8, "tokens_per_microbatch": 400},
        "evaluation": {"every": 3.0},
        "run": {"folder": str(folder), "save_every": 0.0},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return Recipe.model_validate(values)


def make_splits(folder: Path, train: Sequence[Any], validation: Sequence[Any] = ()) -> dict[str, Any]:
    """Splits as `rmtrain.data.prepare` hands them over."""
    from rmtrain.data.entries import Entry
    from rmtrain.data.ledgers import Ledger, SplitReport
    from rmtrain.data.prepare import ReadyPart, ReadySplit
    from rmtrain.data.sources import RowPlaces
    from rmtrain.data.split_data import SplitData, SplitPart
    from rmtrain.data.token_cache import tokenize_split
    from rmtrain.data.tokenize import Tokenization
    from rmtrain.recipe.data_schema import DataSection

    ready = {}
    for name, groups in {"train": train, "validation": validation}.items():
        if groups:
            books, count = Ledger(len(groups), len(groups), {}), sum(len(group.preferences) for group in groups)
            report = SplitReport(name, "completions", books, books, Ledger(count, count, {}), {}, ())
            rows, origin = tuple(range(len(groups))), {"source": "made", "revision": None, "fingerprint": "made"}
            entry = Entry(DataSection(source="demo"), name)
            data = SplitData(name, list(groups), (SplitPart(entry, report, rows, RowPlaces("made"), origin),))
            tokens = tokenize_split(groups, Tokenization(make_renderer(), MAX_LENGTH, "truncate_prompt"), folder)
            ready[name] = ReadySplit(data, tokens, (ReadyPart(data.parts[0], tokens),))
    return ready


def make_renderer() -> Any:
    from rmtrain.data.render import Renderer

    return Renderer.for_tokenizer(make_tokenizer())


def reward_batch(rewards: Any, better: Any, worse: Any, **changes: Any) -> Any:
    """What an objective sees of one group with these rewards and preferences; `changes` are of the preferences."""
    import torch

    from rmtrain.training.objectives import Completions, Preferences, RewardBatch

    ones, places = torch.ones(len(better)), torch.zeros(len(rewards), dtype=torch.long)
    preferences = Preferences(torch.as_tensor(better), torch.as_tensor(worse), ones, torch.zeros_like(ones), ones)
    rows = Completions(places, torch.full((len(rewards),), 1 / len(rewards)), places + 5, rewards.detach() * torch.nan)
    given = {name: torch.as_tensor(value) for name, value in changes.items()}
    return RewardBatch(rewards, preferences._replace(**given), rows)


def run(
    base: Path,
    folder: Path,
    *,
    groups: Sequence[Any] | None = None,
    validation: Sequence[Any] | None = None,
    resume: Path | None = None,
    allow_changes: bool = False,
    display: Any = None,
    **changes: Any,
) -> Any:
    """Train on 40 made groups (six steps of at most eight over 1.2 epochs), with 12 for validation."""
    from rmtrain.recipe.load import LoadedRecipe
    from rmtrain.training.train import train

    recipe = make_recipe(base, folder, **({"optim__epochs": 1.2} | changes))
    splits = make_splits(
        folder / "cache",
        make_groups(40, seed=1) if groups is None else groups,
        make_groups(12, seed=2) if validation is None else validation,
    )
    loaded = LoadedRecipe(recipe, {}, Path("try.yaml"), "try")
    return train(loaded, splits, make_renderer(), display or Recorder(), resume, allow_changes)


def only_run(folder: Path) -> Path:
    """The one run folder under a folder."""
    (found,) = folder.glob("try-*")
    return found


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a saved model."""
    from safetensors.torch import load_file

    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def at_step(step: int, action: Callable[[], None], process: int = 0) -> None:
    """Do something once, in the first micro-batch of a step (counted from 1), on one process."""
    from rmtrain.training.trainer import GroupRewardTrainer

    before, done = GroupRewardTrainer.compute_loss, []

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and self.args.process_index == process and not done:
            done.append(step)
            action()
        return before(self, *args, **kwargs)

    GroupRewardTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def missing(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def fork(count: int, work: Callable[[], Any], log: Path) -> list[int]:
    """Start processes that do `work` as the ranks of one launch; an rmtrain error's exit code is theirs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(count):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 1
        try:
            descriptor = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.setpgid(0, 0)
            if count > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(count),
                    LOCAL_WORLD_SIZE=str(count),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
            work()
            code = 0
        except BaseException as error:
            traceback.print_exc()
            code = getattr(error, "exit_code", 1)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pids


def wait(pids: Sequence[int], seconds: float = 120.0) -> list[int]:
    """Exit codes; negative is the signal that ended a process. What still runs after `seconds` is killed (-9)."""
    end, codes = time.monotonic() + seconds, dict.fromkeys(pids, 0)
    left = list(pids)
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def import_all() -> None:
    """Import and warm up what a run needs, so that forked processes need not, nor look for garbage in it."""
    from conftest import make_config

    import rmtrain.training.train  # noqa: F401
    from rmtrain.model.activations import trial
    from rmtrain.model.batch import GroupSize
    from rmtrain.recipe.schema import LoraSection, ModelSection

    measured.share()
    section = ModelSection(name="base", dtype="float32")
    assert trial(make_config(), section, LoraSection(rank=4), [GroupSize(4, (3, 3))], "shared_prompt")
    gc.collect()
    gc.freeze()


def save(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def share_on_cpu() -> None:
    """Have accelerate run FSDP over gloo, which it leaves to accelerators though torch can do it on the CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    before = PartialState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init  # type: ignore[method-assign]
