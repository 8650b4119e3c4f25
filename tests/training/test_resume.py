"""A run that was stopped, however, ends as if it had not been; a run that is not the same is refused."""

import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from conftest import make_groups, write_base
from training_cases import Recorder, at_step, fork, import_all, only_run, run, wait, weights

from rmtrain.errors import InputError, Interrupted, RunFailedError
from rmtrain.runs import locked, read_manifest
from rmtrain.training import lifecycle
from rmtrain.training.checkpointing import commit
from rmtrain.training.resume import _with_defaults, sampled_digest
from rmtrain.training.trainer import GroupRewardTrainer

STEPS = 6
# two micro-batches a step, dropout, a last step of each epoch that is smaller, validation that selects
CASE: dict[str, Any] = {"optim__tokens_per_microbatch": 300, "evaluation__every": 2.0, "run__keep_checkpoints": 2}
EVEN = CASE | {"lora__dropout": 0.0}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    machine = ("second", "waiting", "memory", "matrix")  # what a line says of the machine, not of the model
    return [{k: v for k, v in line.items() if not any(word in k for word in machine)} for line in lines]


def assert_equal_runs(folder: Path, whole: Path) -> None:
    """Bit-equal models, the same best step, the same log lines but for the times, the same totals."""
    ours, theirs = weights(folder / "final"), weights(whole / "final")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    last = [weights(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (folder, whole)]
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())
    assert timeless(metrics(folder)) == timeless(metrics(whole))
    states = [path / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json" for path in (folder, whole)]
    best = [json.loads(state.read_text(encoding="utf-8"))["best_global_step"] for state in states]
    assert best[0] == best[1]
    manifest, expected = read_manifest(folder), read_manifest(whole)
    assert manifest["state"] == "finished"
    assert manifest["error"] is None
    for name, total in expected["totals"].items():
        if name not in ("seconds", "peak_memory_bytes"):
            assert manifest["totals"][name] == pytest.approx(total), name


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    folder: Path = run(base, tmp_path_factory.mktemp("whole"), **CASE).run
    return folder


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # put back afterwards
    return at_step


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGINT), (3, signal.SIGUSR1), (5, signal.SIGTERM)],
)
def test_a_signal_stops_after_its_step_with_a_checkpoint(
    base: Path, tmp_path: Path, whole: Path, injected: Any, step: int, number: int
) -> None:
    before = signal.getsignal(number)
    injected(step, send(number))
    with pytest.raises(Interrupted, match=f"stopped at step {step} of {STEPS}; a checkpoint is written") as caught:
        run(base, tmp_path, **CASE)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) == before
    folder = only_run(tmp_path)
    assert f"rmtrain train --resume {folder}" in caught.value.hint
    assert read_manifest(folder)["state"] == "interrupted"
    assert not (folder / "final").exists()
    last = metrics(folder)[-1]
    assert last["step"] == step
    assert "loss" in last  # no validation came between the signal and the checkpoint

    display = Recorder()
    result = run(base, tmp_path, resume=folder, display=display, **CASE)
    assert f"resuming from checkpoint-{step}" in display.notes
    assert result.steps == STEPS
    assert result.tokens == read_manifest(whole)["totals"]["tokens"]
    assert_equal_runs(folder, whole)


def in_backward(self: Any, before: Any, *args: Any, **kwargs: Any) -> Any:
    loss = before(self, *args, **kwargs)
    loss.register_hook(lambda gradient: send(signal.SIGTERM)())
    return loss


def in_second_microbatch(self: Any, before: Any, *args: Any, **kwargs: Any) -> Any:
    if not self.accelerator.sync_gradients:
        return before(self, *args, **kwargs)
    send(signal.SIGTERM)()
    return before(self, *args, **kwargs)


def at_once(self: Any, before: Any, *args: Any, **kwargs: Any) -> Any:
    send(signal.SIGTERM)()
    return before(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("method", "when", "made"),
    [
        ("compute_loss", in_backward, 1),
        ("compute_loss", in_second_microbatch, 1),
        ("_get_grad_norm", at_once, 1),  # the optimiser's step is next
        ("evaluate", at_once, 2),
        ("_save_rng_state", at_once, 2),
    ],
    ids=["backward", "second micro-batch", "optimiser", "validation", "saving"],
)
def test_a_signal_at_any_point_of_a_step_stops_at_its_end(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, method: str, when: Any, made: int
) -> None:
    before, seen = getattr(GroupRewardTrainer, method), list[int]()

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step != made or seen.count(made) > 3:
            return before(self, *args, **kwargs)
        seen.append(made)
        return when(self, before, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GroupRewardTrainer, method, spied)
        with pytest.raises(Interrupted, match=f"stopped at step 2 of {STEPS}"):
            run(base, tmp_path, **CASE)
    assert seen
    run(base, tmp_path, resume=only_run(tmp_path), **CASE)
    assert_equal_runs(only_run(tmp_path), whole)


def test_an_echo_of_a_signal_is_no_second_one(base: Path, tmp_path: Path, injected: Any) -> None:
    def echo() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)

    injected(2, echo)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        run(base, tmp_path, **CASE)


@pytest.mark.parametrize("step", [2, 3, STEPS])
def test_a_crash_in_any_step_goes_on_from_the_last_checkpoint(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def crash() -> None:
        raise OSError("the cable was pulled")

    with monkeypatch.context() as patch:
        patch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)
        at_step(step, crash)
        with pytest.raises(RunFailedError, match="the cable was pulled"):
            run(base, tmp_path, **CASE)
    folder = only_run(tmp_path)
    display = Recorder()
    run(base, tmp_path, resume=folder, display=display, **CASE)
    saved = (step - 1) // 2 * 2
    assert (f"resuming from checkpoint-{saved}" if saved else "starting at step 0") in " ".join(display.notes)
    assert_equal_runs(folder, whole)
    assert [part["from"] for part in read_manifest(folder)["resumed"]] == [f"checkpoint-{saved}" if saved else None]


def test_a_run_whose_batches_a_thread_packs_ahead_stops_and_resumes_as_any_other(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, injected: Any
) -> None:
    from rmtrain.training import trainer

    monkeypatch.setattr(trainer, "_PACKS_AHEAD", ("cpu",))
    injected(3, send(signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"stopped at step 3 of {STEPS}"):
        run(base, tmp_path, **CASE)
    run(base, tmp_path, resume=only_run(tmp_path), **CASE)
    assert_equal_runs(only_run(tmp_path), whole)


def test_steps_between_log_lines_are_in_the_totals(base: Path, tmp_path: Path, whole: Path, injected: Any) -> None:
    injected(3, send(signal.SIGTERM))
    changes = CASE | {"tracking__log_every": 4}
    with pytest.raises(Interrupted):
        run(base, tmp_path, **changes)
    result = run(base, tmp_path, resume=only_run(tmp_path), **changes)
    expected = read_manifest(whole)["totals"]
    totals = read_manifest(result.run)["totals"]
    assert {name: totals[name] for name in ("tokens", "pairs", "groups", "steps")} == {
        name: expected[name] for name in ("tokens", "pairs", "groups", "steps")
    }
    assert result.train_loss == pytest.approx(expected["loss_sum"] / STEPS, abs=1e-6)


def test_a_finished_run_can_be_finished_again(base: Path, tmp_path: Path, whole: Path) -> None:
    """Killed after its last checkpoint and before `final/`, say."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    shutil.rmtree(folder / "final")
    run(base, tmp_path, resume=folder, **CASE)
    assert_equal_runs(folder, whole)


def test_a_moved_run_goes_on_and_keeps_its_best(base: Path, tmp_path: Path, whole: Path, injected: Any) -> None:
    injected(5, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path / "here", **CASE)
    folder = tmp_path / "there"
    shutil.move(only_run(tmp_path / "here"), folder)
    run(base, tmp_path / "here", resume=folder, **CASE)
    assert_equal_runs(folder, whole)


def test_torn_log_lines_are_cut_off(base: Path, tmp_path: Path, whole: Path, injected: Any) -> None:
    injected(3, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path, **CASE)
    folder = only_run(tmp_path)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    run(base, tmp_path, resume=folder, **CASE)
    assert_equal_runs(folder, whole)


def test_a_damaged_checkpoint_is_passed_over_and_said(base: Path, tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    shutil.rmtree(folder / "final")
    newest = folder / "checkpoints" / f"checkpoint-{STEPS}" / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    display = Recorder()
    run(base, tmp_path, resume=folder, display=display, **CASE)
    passed = f"skipped a checkpoint: {newest.parent}: optimizer.pt has changed since it was written"
    assert passed in display.notes
    assert any(note.startswith("resuming from checkpoint-") for note in display.notes)
    assert_equal_runs(folder, whole)


class Hostile:
    """A pickle that would write a file."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch was_run",))


CONTENTS: dict[str, Callable[[Path], Any]] = {
    "hostile": lambda path: path.write_bytes(pickle.dumps(Hostile())),
    "of no kind": lambda path: torch.save(["x"], path),
    "text": lambda path: path.write_text("x"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_state_that_can_t_be_read_is_named_and_nothing_of_it_is_run(
    base: Path, tmp_path: Path, whole: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    shutil.rmtree(folder / "checkpoints" / f"checkpoint-{STEPS}")
    checkpoint = folder / "checkpoints" / f"checkpoint-{STEPS - 2}"
    CONTENTS[content](checkpoint / name)
    manifest = described(checkpoint)
    (checkpoint / "checkpoint.json").unlink()
    shutil.move(checkpoint, tmp_path / "staged")
    commit(tmp_path / "staged", checkpoint, manifest)
    with pytest.raises(RunFailedError, match=rf"{name}: damaged, or it holds more than tensors") as error:
        run(base, tmp_path, resume=folder, **CASE)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "was_run").exists()


def described(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says beside its digests."""
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    return {key: value for key, value in manifest.items() if key not in ("files", "digest")}


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", ".lock"])
def test_a_link_in_a_run_folder_is_not_written_through(base: Path, tmp_path: Path, whole: Path, name: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    (target := tmp_path / "precious").write_text("kept")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(InputError, match=rf"{name} is a symbolic link"):
        run(base, tmp_path, resume=folder, **CASE)
    assert target.read_text() == "kept"


def test_a_log_that_is_no_text_is_named(base: Path, tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    with open(folder / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 1, "x": "\xff"}\n')
    with pytest.raises(RunFailedError, match=r"metrics\.jsonl:\d+: not UTF-8 text"):
        run(base, tmp_path, resume=folder, **CASE)


def test_a_best_checkpoint_that_is_damaged_is_no_final_model(base: Path, tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    state = json.loads((folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text("utf-8"))
    best = folder / "checkpoints" / f"checkpoint-{state['best_global_step']}"
    assert state["best_global_step"] != STEPS
    (best / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(RunFailedError, match=r"should become the final model is damaged: .*adapter_model"):
        run(base, tmp_path, resume=folder, **CASE)
    run(base, tmp_path, resume=folder, allow_changes=True, **(CASE | {"evaluation__select": "last"}))
    last = weights(folder / "checkpoints" / f"checkpoint-{STEPS}")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(folder / "final").items())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optim__learning_rate": 1e-4}, "optim.learning_rate: 0.003 in the checkpoint, 0.0001 now"),
        ({"run__seed": 1}, "run.seed: 0 in the checkpoint, 1 now"),
        ({"optim__global_batch_size": 4}, "optim.global_batch_size: 8 in the checkpoint, 4 now"),
        ({"optim__max_steps": 5}, "optim.max_steps: None in the checkpoint, 5 now"),
        ({"lora__rank": 8}, "lora.rank: 4 in the checkpoint, 8 now"),
        ({"lora": None}, "lora.rank: 4 in the checkpoint, None now"),
        ({"loss__centering": 0.1}, "loss.centering: 0.0 in the checkpoint, 0.1 now"),
        ({"model__packing": "none"}, "model.packing: 'shared_prompt' in the checkpoint, 'none' now"),
        ({"groups": make_groups(40, seed=9)}, "rows of train: "),
        ({"validation": make_groups(11, seed=2)}, "rows of validation: "),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_a_changed_run_is_refused_by_what_has_changed(
    base: Path, tmp_path: Path, whole: Path, changes: dict[str, Any], key: str
) -> None:
    before = (whole / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="this is not the run that was stopped") as caught:
        run(base, tmp_path, resume=whole, **(CASE | changes))
    assert key in caught.value.message
    assert caught.value.exit_code == 2
    assert "--allow-changes" in caught.value.hint
    assert (whole / "manifest.json").read_bytes() == before  # nothing was started


def test_a_key_that_the_checkpoints_version_did_not_have_stands_at_its_default() -> None:
    before = {"loss.margin": 0.0, "data.splits": {}}
    now = {"loss.margin": 0.0, "loss.centering": 0.1, "data.holdout": {}, "lora.rank": 4}
    holdout = {"validation": 0, "test": 0, "seed": 0}
    assert _with_defaults(before, now) == before | {"loss.centering": 0.0, "data.holdout": holdout}


def change_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_other_weights_in_the_bases_folder_are_another_run(base: Path, tmp_path: Path, injected: Any) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    injected(1, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(copy, tmp_path, **CASE)
    change_last_byte(copy / "model.safetensors")
    with pytest.raises(InputError, match="weights of the base: "):
        run(copy, tmp_path, resume=only_run(tmp_path), **CASE)


def test_other_weights_below_the_adapter_that_a_run_starts_from_are_another_run(
    base: Path, tmp_path: Path, injected: Any
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    first = run(copy, tmp_path / "first", **CASE).run / "final"
    injected(1, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(first, tmp_path / "second", **CASE)
    stopped = only_run(tmp_path / "second")
    change_last_byte(copy / "model.safetensors")
    with pytest.raises(InputError, match="weights below the adapter that the run starts from: "):
        run(first, tmp_path / "second", resume=stopped, **CASE)
    change_last_byte(copy / "model.safetensors")
    run(first, tmp_path / "second", resume=stopped, **CASE)


def test_a_digest_by_samples_sees_sizes_and_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    seen = set()
    for size in (0, 1, 5 << 20, 6 << 20):
        for changed in (None, 0, size - 1):
            content = bytearray(size)
            if size and changed is not None:
                content[changed] = 1
            file.write_bytes(content)
            seen.add(sampled_digest(tmp_path))
    assert len(seen) == 1 + 2 + 3 + 3


@pytest.mark.parametrize("allowed", [False, True])
def test_state_of_another_engine_is_never_left_unread(base: Path, tmp_path: Path, whole: Path, allowed: bool) -> None:
    with pytest.raises(InputError, match="zero2 can't read the optimiser state that ddp wrote") as caught:
        run(base, tmp_path, resume=whole, allow_changes=allowed, **(CASE | {"distributed__strategy": "zero2"}))
    assert "distributed.strategy=ddp on 1 process" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__tokens_per_microbatch": 90},
        {"optim__tokens_per_microbatch": None, "optim__microbatch_size": 1},
        {"optim__gradient_checkpointing": "full"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_run_goes_on_with_micro_batches_cut_otherwise(
    base: Path, tmp_path: Path, injected: Any, even: Path, changes: dict[str, Any]
) -> None:
    injected(3, send(signal.SIGTERM))
    first, second = Recorder(), Recorder()
    with pytest.raises(Interrupted):
        run(base, tmp_path, display=first, **EVEN)
    folder = run(base, tmp_path, resume=only_run(tmp_path), display=second, **(EVEN | changes)).run
    cuts = [next(note for note in display.notes if "micro-batches" in note) for display in (first, second)]
    assert ("gradient_checkpointing" in next(iter(changes))) == (cuts[0] == cuts[1])
    ours, theirs = weights(folder / "final"), weights(even / "final")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-4)
    for line, expected in zip(metrics(folder), metrics(even), strict=True):
        assert line["step"] == expected["step"]
        assert line.get("loss") == pytest.approx(expected.get("loss"), abs=1e-5)


@pytest.fixture(scope="module")
def even(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout, which draws other masks for other micro-batches."""
    folder: Path = run(base, tmp_path_factory.mktemp("even"), **EVEN).run
    return folder


def test_what_does_not_matter_may_change(base: Path, tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    changes = {
        "tracking__log_every": 2,
        "run__keep_checkpoints": 5,
        "run__name": "other",
        "run__save_every": 1.0,
        "evaluation__tokens_per_batch": 100,
        "distributed__timeout_minutes": 1.0,
    }
    run(base, tmp_path, resume=folder, **(CASE | changes))


def test_allowed_changes_are_said_and_written_down(base: Path, tmp_path: Path, injected: Any) -> None:
    injected(2, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path, **CASE)
    folder, display = only_run(tmp_path), Recorder()
    changes = CASE | {"optim__max_steps": 4}
    assert run(base, tmp_path, resume=folder, allow_changes=True, display=display, **changes).steps == 4
    assert "changed: optim.max_steps: None in the checkpoint, 4 now" in display.notes
    assert "max_steps: 4" in (folder / "recipe.yaml").read_text(encoding="utf-8")


def test_a_run_in_use_is_refused(base: Path, tmp_path: Path, whole: Path) -> None:
    with (
        locked(whole),
        pytest.raises(InputError, match=rf"{whole} is in use by process {os.getpid()} on "),
    ):
        run(base, tmp_path, resume=whole, **CASE)
    assert read_manifest(whole)["state"] == "finished"


def test_a_folder_that_is_no_run_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        run(base, tmp_path, resume=tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_disk_without_room_for_a_run_is_said_and_leaves_none(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    before = read_manifest(whole)
    monkeypatch.setattr(lifecycle, "update_manifest", refuse)
    with pytest.raises(InputError, match=r"the run folder can't be written: the disk is full") as caught:
        run(base, tmp_path, resume=whole if resumed else None, **CASE)
    assert "run.folder" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert read_manifest(whole) == before


def test_a_run_folder_is_whole_when_it_gets_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def reveal(folder: Path) -> Path:
        seen.extend(path.name for path in folder.iterdir())
        assert read_manifest(folder)["state"] == "running"
        assert not list(tmp_path.glob("try-*"))
        with pytest.raises(InputError, match="is in use"), locked(folder):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle, "reveal", reveal)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, **CASE)
    assert sorted(seen) == [".lock", "manifest.json", "recipe.yaml"]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_input_that_is_wrong_leaves_no_run_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lora\.targets"):
        run(base, tmp_path, lora__targets=["nothing_like_it"])
    assert not list(tmp_path.glob("try-*"))


# What needs processes of its own: the script below, which imports once and forks


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("killed")
    done = warm.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results | {"folder": folder}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_time_it_ends_as_if_it_had_not_been(killed: dict[str, Any]) -> None:
    assert len(killed["kills"]) == KILLS
    assert any(kill["ended"] == -signal.SIGKILL for kill in killed["kills"])
    for kill in killed["kills"]:
        assert kill["resumed"] == 0
        assert_equal_runs(Path(kill["run"]), Path(killed["whole"]))


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(killed: dict[str, Any]) -> None:
    assert killed["twice"] == [-signal.SIGTERM, -signal.SIGINT]


@pytest.mark.slow
def test_the_lock_goes_with_a_killed_process(killed: dict[str, Any]) -> None:
    assert killed["locked"] == [2, 0]  # refused while it lived, taken up when it was gone


KILLS = 12


def _main(folder: Path) -> None:
    import_all()
    base = folder / "base"
    assert wait(fork(1, lambda: write_base(base), folder / "log")) == [0]

    def timed(name: str, work: Callable[[], Any]) -> float:
        started = time.monotonic()
        assert wait(fork(1, work, folder / name)) == [0]
        return time.monotonic() - started

    seconds = timed("whole.log", lambda: run(base, folder / "whole", **CASE))
    draw, kills = random.Random(0), []
    while len(kills) < KILLS:
        place = folder / f"kill-{len(kills)}"
        (pid,) = fork(1, lambda place=place: run(base, place, **CASE), folder / "killed.log")
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        os.kill(pid, signal.SIGKILL)
        (ended,) = wait([pid])
        if not list(place.glob("try-*")):
            shutil.rmtree(place, ignore_errors=True)
            continue  # it had no run yet
        mine = only_run(place)
        read_manifest(mine)  # no folder is ever without
        (resumed,) = wait(fork(1, lambda place=place, mine=mine: run(base, place, resume=mine, **CASE), folder / "log"))
        kills.append({"ended": ended, "resumed": resumed, "run": str(mine)})

    def twice(number: int) -> None:
        def send_twice() -> None:
            os.kill(os.getpid(), number)
            time.sleep(1.2)
            os.kill(os.getpid(), number)

        at_step(2, send_twice)
        run(base, folder / "twice", **CASE)

    ended = [wait(fork(1, lambda n=n: twice(n), folder / "log"))[0] for n in (signal.SIGTERM, signal.SIGINT)]

    def hang() -> None:
        at_step(3, lambda: time.sleep(100))
        run(base, folder / "hung", **CASE)

    (hung,) = fork(1, hang, folder / "log")
    while not list((folder / "hung").glob("try-*/checkpoints/checkpoint-2")):
        time.sleep(0.05)
    mine = only_run(folder / "hung")
    second = wait(fork(1, lambda: run(base, folder / "hung", resume=mine, **CASE), folder / "log"))
    os.kill(hung, signal.SIGKILL)
    wait([hung])
    third = wait(fork(1, lambda: run(base, folder / "hung", resume=mine, **CASE), folder / "log"))
    results = {"kills": kills, "whole": str(only_run(folder / "whole")), "twice": ended, "locked": second + third}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
