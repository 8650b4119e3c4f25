"""What a run trains: TRL's own losses on pairs, the same however it is cut, and nothing that is not finite."""

import json
import os
import signal
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_groups, write_base
from datasets import Dataset
from safetensors import SafetensorError
from training_cases import Recorder, at_step, make_recipe, make_renderer, make_splits, only_run, run, weights
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from rmtrain.data.schemas.detect import find_schema
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import Interrupted, LostProcessError, NonFiniteError, RunFailedError
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.quantization import is_quantised
from rmtrain.recipe.data_schema import DataSection
from rmtrain.scoring.batches import score_groups
from rmtrain.training.build import make_plan
from rmtrain.training.checkpointing import newest_valid
from rmtrain.training.selection import validation_groups
from rmtrain.training.train import build_model
from rmtrain.training.trainer import GroupRewardTrainer

EVEN = {"lora__dropout": 0.0, "evaluation__every": 0.0}


def losses(display: Recorder) -> list[float]:
    return [line["loss"] for line in display.lines if "loss" in line]


def trained(base: Path, folder: Path, **changes: Any) -> tuple[list[float], dict[str, Any]]:
    """Step losses and final weights of a run."""
    display = Recorder()
    result = run(base, folder, display=display, **({**EVEN} | changes))
    return losses(display), weights(result.run / "final")


def assert_close(ours: tuple[list[float], dict[str, Any]], theirs: tuple[list[float], dict[str, Any]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, tensor in ours[1].items():
        torch.testing.assert_close(tensor, theirs[1][name], atol=5e-6, rtol=0, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_a_base_with_dropout_in_its_config_is_trained_without_it(tmp_path: Path) -> None:
    def first_loss(name: str, dropout: float, **changes: Any) -> float:
        display = Recorder()
        base = write_base(tmp_path / name, "gpt_neox", hidden_dropout=dropout, attention_dropout=dropout)
        run(base, tmp_path, display=display, optim__max_steps=1, **EVEN, **changes)
        return losses(display)[0]

    without = first_loss("none", 0.0)
    assert first_loss("half", 0.5) == pytest.approx(without, abs=1e-6)
    assert abs(first_loss("kept", 0.5, model__dropout=True) - without) > 1e-4


def as_ids(pairs: Sequence[PreferenceGroup]) -> tuple[list[dict[str, Any]], list[PreferenceGroup]]:
    """Pairs as rows of token ids, each without its last token here and there, and the groups that are read of them."""
    rows, groups = [], []
    for place, group in enumerate(pairs):
        ids = make_renderer().tokenize([group.prompt + completion for completion in group.completions])
        (preference,) = group.preferences
        chosen, rejected = (ids[k][: None if place % 3 else -1] for k in (preference.better, preference.worse))
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
        parsed = find_schema(rows[-1].keys(), rows[-1], DataSection(source="x")).read(rows[-1])
        assert parsed.stated
        groups.append(PreferenceGroup(group.id, parsed.prompt, parsed.completions, parsed.stated, group.source))
    return rows, groups


@pytest.mark.parametrize(("lora", "centering", "tokens"), [(True, 0.0, False), (False, 0.01, False), (True, 0.0, True)])
def test_on_pairs_the_losses_are_those_of_trls_trainer(
    base: Path, tmp_path: Path, lora: bool, centering: float, tokens: bool
) -> None:
    pairs = make_groups(40, seed=5, k=2)
    given, pairs = as_ids(pairs) if tokens else ([], pairs)
    changes: dict[str, Any] = {} if lora else {"lora": None}
    changes |= {"optim__learning_rate": 2e-3, "loss__centering": centering}
    ours, _ = trained(base, tmp_path, groups=pairs, **(changes if lora else changes | {"evaluation__every": 0.0}))

    recipe = make_recipe(base, tmp_path, optim__epochs=1.2, **({"lora__dropout": 0.0} if lora else {}), **changes)
    split = make_splits(tmp_path / "cache", pairs)["train"]
    plan = make_plan(recipe, split, "shared_prompt", 1)
    rows = []
    for index in (i for step in plan.steps for members in step for i in sorted(members)):
        group = split.tokens.group(index)
        (preference,) = group.preferences
        chosen, rejected = (
            [*group.prefix.tolist(), *group.spread(group.suffixes)[place].tolist()]
            for place in (preference.better, preference.worse)
        )
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
        assert not tokens or rows[-1] == given[index]
    args = RewardConfig(
        output_dir=str(tmp_path / "stock"),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        train_sampling_strategy="sequential",
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        max_grad_norm=1.0,
        weight_decay=0.0,
        center_rewards_coefficient=centering or None,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    stock = RewardTrainer(
        model=stock_model(base, recipe), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )
    stock.train()
    theirs = [line["loss"] for line in stock.state.log_history if "loss" in line]
    assert len(ours) == len(theirs) == 6
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert max(ours) - min(ours) > 0.01  # it learnt something, so that equality means something


def stock_model(base: Path, recipe: Any) -> Any:
    """transformers' own class with the weights that a run of the recipe begins with."""
    from peft import get_peft_model

    from rmtrain.model.adapters import adapter_config

    ours = build_model(recipe, make_renderer().pad_id).module
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    if recipe.lora is not None:
        model = get_peft_model(model, adapter_config(recipe.lora))
    model.load_state_dict(ours.state_dict())
    return model


def tokenizer() -> Any:
    made = make_renderer().tokenizer
    made.pad_token = "<unk>"
    return made


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Any]]:
    return trained(base, tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__packing": "padding_free"},
        {"model__packing": "none"},
        {"optim__tokens_per_microbatch": 90},
        {"optim__tokens_per_microbatch": None, "optim__microbatch_size": 3},
        {"optim__tokens_per_microbatch": 100_000},
        {"optim__gradient_checkpointing": "full"},
        {"evaluation__every": 1.0, "evaluation__select": "last", "run__save_every": 2.0},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_the_same_is_learnt_however_the_work_is_cut(
    base: Path, tmp_path: Path, packed: tuple[list[float], dict[str, Any]], changes: dict[str, Any]
) -> None:
    assert_close(trained(base, tmp_path, **changes), packed)


def test_a_whole_model_learns_the_same_packed_and_padded(base: Path, tmp_path: Path) -> None:
    packed, padded = (
        trained(base, tmp_path / packing, lora=None, model__packing=packing) for packing in ("shared_prompt", "none")
    )
    assert_close(packed, padded)


def test_a_log_line_covers_all_steps_since_the_last(base: Path, tmp_path: Path) -> None:
    each, few = Recorder(), Recorder()
    run(base, tmp_path / "each", display=each, **EVEN)
    result = run(base, tmp_path / "few", display=few, tracking__log_every=3, **EVEN)
    by_step = {line["step"]: line for line in each.lines}
    assert [line["step"] for line in few.lines] == [1, 3, 6]
    second, third = few.lines[1:]
    assert second["loss"] == pytest.approx((by_step[2]["loss"] + by_step[3]["loss"]) / 2, abs=1e-6)
    assert third["loss"] == pytest.approx(sum(by_step[step]["loss"] for step in (4, 5, 6)) / 3, abs=1e-6)
    assert third["tokens"] == by_step[6]["tokens"] == result.tokens
    assert result.train_loss == pytest.approx(sum(losses(each)) / 6, abs=1e-6)
    assert [line["epoch"] for line in each.lines] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


def test_validation_does_not_depend_on_its_batches(base: Path, tmp_path: Path) -> None:
    figures = []
    for tokens in (1, 100, 100_000):
        display = Recorder()
        run(base, tmp_path / str(tokens), display=display, optim__max_steps=3, evaluation__tokens_per_batch=tokens)
        (line,) = (line for line in display.lines if "eval_loss" in line)
        figures.append((line["eval_accuracy"], line["eval_loss"]))
    for accuracy, loss in figures[1:]:
        assert accuracy == figures[0][0]
        assert loss == pytest.approx(figures[0][1], abs=1e-6)


def test_the_validation_figures_are_those_of_all_its_preferences(base: Path, tmp_path: Path) -> None:
    """Of the final model, scored one sequence at a time by transformers' own class."""
    display, validation = Recorder(), make_groups(12, seed=2)
    result = run(base, tmp_path, display=display, lora=None, evaluation__select="last", evaluation__every=6.0)
    (line,) = (line for line in display.lines if "eval_loss" in line)
    model = AutoModelForSequenceClassification.from_pretrained(result.run / "final", dtype=torch.float32).eval()
    tokens = make_splits(tmp_path / "cache", validation)["train"].tokens
    gaps = []
    for index in range(len(tokens)):
        group = tokens.group(index)
        with torch.no_grad():
            rewards = [
                model(torch.tensor([[*group.prefix.tolist(), *suffix.tolist()]])).logits.item()
                for suffix in group.spread(group.suffixes)
            ]
        gaps += [rewards[p.better] - rewards[p.worse] for p in group.preferences]
    assert line["eval_accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / len(gaps))
    assert line["eval_loss"] == pytest.approx(torch.nn.functional.softplus(-torch.tensor(gaps)).mean().item(), abs=1e-5)


@pytest.mark.parametrize(("limit", "places"), [(None, range(12)), (3, (0, 4, 8)), (12, range(12)), (99, range(12))])
def test_a_limited_validation_is_spread_over_the_split(tmp_path: Path, limit: int | None, places: Any) -> None:
    recipe = make_recipe(tmp_path, tmp_path, evaluation__limit=limit)
    splits = make_splits(tmp_path, make_groups(2), make_groups(12, seed=2))
    assert [group.id for group in validation_groups(recipe, splits).groups] == [f"g{place}" for place in places]


@pytest.mark.parametrize(("select", "step"), [("accuracy", 4), ("loss", 3), ("last", 5)])
def test_the_best_checkpoint_becomes_the_final_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, step: int
) -> None:
    figures = {1: (0.5, 0.7), 2: (0.9, 0.6), 3: (0.8, 0.3), 4: (0.9, 0.4), 5: (0.1, 0.9)}

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        accuracy, loss = figures[self.state.global_step]
        self.log({"eval_accuracy": accuracy, "eval_loss": loss})
        return {"eval_accuracy": accuracy, "eval_loss": loss}

    monkeypatch.setattr(GroupRewardTrainer, "evaluate", evaluate)
    changes = {"evaluation__every": 1.0, "evaluation__select": select, "optim__max_steps": 5}
    result = run(base, tmp_path, **changes)
    kept = {path.name for path in (result.run / "checkpoints").iterdir()}
    assert kept == {"checkpoint-4", "checkpoint-5"} | {f"checkpoint-{step}"}
    best = weights(result.run / "checkpoints" / f"checkpoint-{step}")
    final = weights(result.run / "final")
    assert all(torch.equal(final[name], tensor) for name, tensor in best.items())


def poisoned(folder: Path) -> Path:
    """A base whose embedding of one word is NaN."""
    from safetensors.torch import load_file, save_file

    path = write_base(folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["embed_tokens.weight"][-1] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path, log_every: int) -> None:
    word = WORDS[-1]
    clean = [
        group
        for group in make_groups(60, seed=7)
        if not any(word in message.content.split() for c in (group.prompt, *group.completions) for message in c)
    ][:32]
    bad = clean[20]._replace(id="the bad one", prompt=(clean[20].prompt[0]._replace(content=f"w1 {word} w2"),))
    groups = [*clean[:20], bad, *clean[21:]]
    split = make_splits(tmp_path / "cache", groups)["train"]
    plan = make_plan(make_recipe(tmp_path, tmp_path), split, "shared_prompt", 1)
    step = 1 + next(n for n, step in enumerate(plan.steps) if any(20 in members for members in step))
    assert step > 1  # else there is nothing to save before it

    with pytest.raises(NonFiniteError, match=rf"step {step}: .*groups the bad one\)") as caught:
        run(
            poisoned(tmp_path / "base"),
            tmp_path,
            groups=groups,
            validation=[],
            optim__epochs=1.0,
            run__save_every=1.0,
            tracking__log_every=log_every,
        )
    assert caught.value.exit_code == 1
    folder = only_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["state"] == "failed"
    assert "the bad one" in manifest["error"]
    assert "NonFiniteError" in (folder / "log.txt").read_text(encoding="utf-8")
    assert not (folder / "final").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, step))
    last = weights(folder / "checkpoints" / f"checkpoint-{step - 1}")
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_gradients_that_overflow_stop_too(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = GroupRewardTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        if self.state.global_step == 2:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", compute_loss)
    with pytest.raises(NonFiniteError, match=r"step 3: .*in no single group: the gradients overflowed"):
        run(base, tmp_path)


def test_an_error_in_a_step_is_a_failed_run_with_its_traceback(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", compute_loss)
    with pytest.raises(RunFailedError, match="training failed: ZeroDivisionError: by nought"):
        run(base, tmp_path)
    folder = only_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["state"], manifest["error"]) == ("failed", "ZeroDivisionError: by nought")
    assert "in compute_loss" in (folder / "log.txt").read_text(encoding="utf-8")


def test_out_of_memory_says_what_to_lower(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", compute_loss)
    with pytest.raises(RunFailedError, match="CUDA out of memory") as caught:
        run(base, tmp_path)
    hint = caught.value.hint
    assert "optim.tokens_per_microbatch=" in hint
    assert "optim.gradient_checkpointing=" in hint
    assert f"rmtrain train --resume {only_run(tmp_path)}" in hint


def test_a_checkpoint_that_cannot_be_written_says_so_and_leaves_the_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = GroupRewardTrainer._save_optimizer_and_scheduler

    def full(self: Any, folder: str) -> None:
        if self.state.global_step == 4:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        before(self, folder)

    monkeypatch.setattr(GroupRewardTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(
        RunFailedError, match=r"checkpoint-4 could not be written .*disk is full: .* free\); earlier .* complete"
    ):
        run(base, tmp_path, run__save_every=2.0, evaluation__every=0.0)
    checkpoints = only_run(tmp_path) / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("said", ["Connection closed by peer [127.0.0.1]:26533", "connection reset by peer"])
def test_a_checkpoint_that_another_process_left_is_not_said_to_be_unwritable(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """The other one says why: its disk may be full."""

    def left(self: Any, folder: str) -> None:
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:553] {said}")

    monkeypatch.setattr(GroupRewardTrainer, "_save_optimizer_and_scheduler", left)
    with pytest.raises(LostProcessError, match=r"RuntimeError: \[gloo") as caught:
        run(base, tmp_path, run__save_every=2.0, evaluation__every=0.0)
    assert caught.value.run == only_run(tmp_path)
    assert "could not be written" not in str(caught.value)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("fault", ["lost", "cut", "not finite"])
def test_a_checkpoint_that_lacks_a_tensor_replaces_none(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    before = GroupRewardTrainer._save

    def torn(self: Any, output_dir: str, state_dict: Any = None) -> None:
        before(self, output_dir, state_dict)
        if self.state.global_step == 4:
            file = Path(output_dir) / ("adapter_model.safetensors" if lora else "model.safetensors")
            tensors = load_file(file)
            name = next(name for name in tensors if "layers.1" in name)
            if fault == "lost":
                del tensors[name]
            else:
                tensors[name] = tensors[name][:1].clone() if fault == "cut" else tensors[name] * torch.nan
            save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(GroupRewardTrainer, "_save", torn)
    changes: dict[str, Any] = {"run__save_every": 1.0, "evaluation__every": 0.0} | ({} if lora else {"lora": None})
    with pytest.raises(RunFailedError, match=r"checkpoint-4 could not be written \(.*layers\.1.* earlier .* complete"):
        run(base, tmp_path, **changes)
    folder = only_run(tmp_path) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert newest_valid(folder).path == folder / "checkpoint-3"


def test_a_final_model_that_can_not_be_written_says_so_and_comes_with_the_next_resume(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmtrain.model import saving

    def full(*args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "copy", full)
        with pytest.raises(RunFailedError, match=r"final can't be written: the disk is full") as caught:
            run(base, tmp_path)
    assert caught.value.exit_code == 1
    folder = only_run(tmp_path)
    assert not [path for path in folder.iterdir() if "final" in path.name]
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["state"] == "failed"
    run(base, tmp_path, resume=folder)
    written = [path for place in ("final", "checkpoints") for path in (folder / place).rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "optimizer.pt"} <= {path.name for path in written}
    modes = {path.stat().st_mode & 0o777 for path in written}
    assert modes == {(folder / "recipe.yaml").stat().st_mode & 0o777}


def test_the_final_model_is_on_the_disk_before_the_run_is_called_finished(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    from rmtrain.training import train as module

    update = module.update_manifest

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def finish(folder: Path, **values: Any) -> None:
        if values.get("state") == "finished":
            staged = {Path(path).name for path in synced if f"{folder}/.final.staging/" in path and path[-4:] != ".tmp"}
            assert staged == {path.name for path in (folder / "final").iterdir()}
            assert synced[-1] == str(folder)
        update(folder, **values)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "update_manifest", finish)
    run(base, tmp_path, optim__max_steps=2)
    assert synced


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_quantised_base_with_an_8_bit_optimiser_is_trained_saved_resumed_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base", hidden_size=128, intermediate_size=128, num_hidden_layers=1, head_dim=32)
    changes: dict[str, Any] = {
        "model__quantization": "nf4",
        "optim__max_steps": 3,
        "lora__rank": 32,  # the least whose state, of 32 x 128, is kept in 8 bits
        "lora__dropout": 0.0,
        "optim__optimizer": "adamw_8bit",
    }
    whole = run(base, tmp_path / "whole", **changes).run
    with monkeypatch.context() as patch:
        patch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)
        at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(base, tmp_path, **changes)
    folder = only_run(tmp_path)
    state = torch.load(folder / "checkpoints/checkpoint-2/optimizer.pt", weights_only=True)["state"]
    assert "dtype=torch.uint8" in str(state)
    run(base, tmp_path, resume=folder, **changes)
    ours, theirs = weights(folder / "final"), weights(whole / "final")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    checkpoint = load_checkpoint(str(folder / "final"))
    assert is_quantised(checkpoint.model.module)
    groups = make_splits(tmp_path / "cache", make_groups(12, seed=2))["train"].tokens.groups()
    rewards = score_groups(checkpoint.model, groups, make_renderer().pad_id, 1000)
    right = [rewards[i][p.better] > rewards[i][p.worse] for i, group in enumerate(groups) for p in group.preferences]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max(line["eval_accuracy"] for line in lines if "eval_accuracy" in line)
    assert sum(right) / len(right) == pytest.approx(best)


def test_no_pickle_of_arguments_and_no_token_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "hf_canaryCANARYcanary"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, canary)
    folder = run(base, tmp_path).run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if path.name == "training_args.bin"]
    for path in files:
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        assert not any(canary.encode() in content for content in contents), path


def test_a_finished_run_leaves_what_is_promised_and_nothing_else(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path)
    assert {path.name for path in result.run.iterdir()} == {
        ".lock",
        "checkpoints",
        "final",
        "manifest.json",
        "metrics.jsonl",
        "recipe.yaml",
    }
    assert {path.name for path in (result.run / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-6"}
    manifest = json.loads((result.run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["state"] == "finished"
    assert manifest["error"] is None
    assert manifest["steps"] == result.steps == 6
    assert manifest["totals"]["tokens"] == result.tokens
    assert manifest["data"]["train"]["groups"] == 40


def test_the_head_is_trained_and_saved(base: Path, tmp_path: Path) -> None:
    before = build_model(make_recipe(base, tmp_path), make_renderer().pad_id).module
    (head,) = (
        tensor for name, tensor in before.state_dict().items() if name.endswith("score.modules_to_save.default.weight")
    )
    final = weights(run(base, tmp_path).run / "final")
    (saved,) = (tensor for name, tensor in final.items() if name.endswith("score.weight"))
    assert saved.dtype == torch.float32
    assert ((saved - head) != 0).float().mean() > 0.99


def test_a_frozen_head_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmtrain.training import train as module

    before: Callable[..., Any] = module.build_model

    def frozen(*args: Any, **kwargs: Any) -> Any:
        model = before(*args, **kwargs)
        for name, parameter in model.module.named_parameters():
            if "score" in name:
                parameter.requires_grad_(False)
        return model

    monkeypatch.setattr(module, "build_model", frozen)
    with pytest.raises(Exception, match="score head is frozen"):
        run(base, tmp_path)


@pytest.mark.parametrize("lora", [True, False])
def test_the_head_has_its_own_learning_rate(base: Path, tmp_path: Path, lora: bool) -> None:
    changes: dict[str, Any] = {
        "optim__learning_rate": 1e-30,
        "optim__head_learning_rate": 1e-2,
        "model__dtype": "float32",
    }
    if not lora:
        changes["lora"] = None
    recipe = make_recipe(base, tmp_path, **changes)
    before = build_model(recipe, make_renderer().pad_id).module.state_dict()
    final = weights(run(base, tmp_path, **changes).run / "final")
    moved = {name for name, tensor in final.items() if not torch.allclose(tensor, _same(before, name))}
    assert {name.rpartition("score")[1] for name in moved} == {"score"}


def _same(before: dict[str, Any], name: str) -> Any:
    """The tensor of a model that PEFT saves under another name."""
    for old in (
        name,
        name.replace(".weight", ".default.weight"),
        name.replace(".weight", ".modules_to_save.default.weight"),
    ):
        if old in before:
            return before[old]
    raise KeyError(name)


def test_a_full_run_starts_from_and_writes_plain_weights(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path, lora=None, model__dtype="bfloat16")
    final = weights(result.run / "final")
    assert {str(tensor.dtype) for name, tensor in final.items() if name.startswith("score")} == {"torch.float32"}
    assert {str(tensor.dtype) for name, tensor in final.items() if not name.startswith("score")} == {"torch.bfloat16"}
    again = run(result.run / "final", tmp_path / "again", lora=None, optim__learning_rate=1e-30)
    kept = weights(again.run / "final")
    torch.testing.assert_close(kept["score.weight"], final["score.weight"])  # an existing head is kept
