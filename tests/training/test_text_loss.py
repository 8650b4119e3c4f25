"""The text loss equals float64 log-probabilities of unpacked sequences, in value and gradient, under any split."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, write_base
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from training_cases import Recorder, make_recipe, make_splits, run, weights
from transformers import AutoModelForCausalLM

from rmtrain.errors import InputError
from rmtrain.model import language_head
from rmtrain.model.batch import GroupSize
from rmtrain.model.language_head import LanguageHead, head_shape, load_language_head
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.model.start import build_model
from rmtrain.training.build import plan_run
from rmtrain.training.microbatches import MicrobatchDataset
from rmtrain.training.objectives import RewardBatch, make_objective
from rmtrain.training.plan import plan_training
from rmtrain.training.step_loss import with_text_loss

SHARE = 0.3
FAMILIES = ["mistral", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "falcon"]
FAMILIES += ["gpt_neox"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base", head=True)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    groups = [*make_groups(6, k=2), *(g._replace(id=f"k4-{g.id}") for g in make_groups(5, seed=1, k=4))]
    return make_splits(tmp_path_factory.mktemp("cache"), groups)["train"].tokens


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: p.grad.double() for name, p in module.named_parameters() if p.grad is not None}


def reference(module: Any, head: Tensor, split: Any, share: float) -> tuple[float, dict[str, Tensor]]:
    """One sequence at a time, in float64, with transformers' own attention."""
    twin = copy.deepcopy(module).double()
    inner = twin.get_base_model()
    inner.set_attn_implementation("eager")
    losses = []
    for place in range(len(split)):
        group, rewards, texts = split.group(place), [], []
        for suffix in group.suffixes:
            ids = torch.tensor([*group.prefix, *suffix])
            states = inner.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            likely = (states @ head.double().T).log_softmax(-1)
            rewards.append(inner.score(states[-1])[0])
            texts.append(torch.stack([likely[t - 1, ids[t]] for t in range(len(group.prefix), len(ids))]).mean())
        pairs = [
            -(1 - share) * logsigmoid(rewards[p.better] - rewards[p.worse]) - share * texts[p.better]
            for p in group.preferences
        ]
        losses.append(torch.stack(pairs).mean())
    loss = torch.stack(losses).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(twin)


@pytest.mark.parametrize("packing", ["shared_prompt", "padding_free", "none"])
def test_it_equals_an_independent_computation_under_any_split(
    base: Path, tmp_path: Path, split: Any, packing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", 7 * 65)  # seven rows at once
    recipe = make_recipe(base, tmp_path, loss__text_loss=SHARE, lora__dropout=0.0, model__packing=packing)
    module = build_model(recipe, 0).module
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:  # 0 at first, and then nothing reaches the other factor
                parameter.normal_(std=0.1)
    expected, slopes = reference(module, load_file(base / "model.safetensors")["lm_head.weight"], split, SHARE)
    objective = make_objective(recipe.loss)
    sizes = [GroupSize(prefix, suffixes) for prefix, suffixes in split.lengths()]
    values = {"epochs": 1.0, "max_steps": None, "global_batch_size": 100, "seed": 3, "packing": packing}
    values |= {"processes": 1, "max_tokens": None, "max_groups": None}
    for changes in ({}, {"max_groups": 1}, {"max_tokens": 80}, {"processes": 3, "max_groups": 2}):
        plan = plan_training(sizes, **(values | changes))  # type: ignore[arg-type]
        module.zero_grad()
        losses = []
        for process in range(plan.processes):
            for batch in MicrobatchDataset(split, plan, process, packing, 0, text=True):
                read = [batch.pop(name) for name in ("preferences", "completions", "ids", "counts")][:2]
                outputs = module(**batch)
                seen = RewardBatch(outputs.logits, *read, log_probs=outputs.log_probs)
                losses.append(with_text_loss(objective.loss(seen), seen, objective.text_loss))
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert gradients(module).keys() == slopes.keys()
        for name, gradient in gradients(module).items():
            torch.testing.assert_close(gradient, slopes[name], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_logits_are_those_of_its_language_model(tmp_path: Path, family: str) -> None:
    folder = write_base(tmp_path / family, family, head=True)
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    backbone = load_backbone(str(folder), None, BackboneOptions("float32"), 0, seed=0).module
    head = load_language_head(backbone, str(folder), None, torch.float32, on_meta=False)
    assert tuple(head.weight.shape) == head_shape(backbone.config)
    ids = torch.randint(5, 65, (1, 9))
    with torch.no_grad():
        states = causal.base_model(input_ids=ids).last_hidden_state[0]
        theirs = causal(input_ids=ids).logits[0]
    torch.testing.assert_close(head.logits(states), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_chunks_have_the_gradient_of_the_whole(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", 3 * 11)
    torch.manual_seed(0)
    head = LanguageHead(torch.randn(11, 6).double(), torch.randn(11).double(), 0.7, cap)
    states, targets = torch.randn(10, 6).double().requires_grad_(), torch.randint(0, 11, (10,))
    logits = torch.nn.functional.linear(states, head.weight, head.bias) * 0.7
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = logits.log_softmax(-1)[torch.arange(10), targets]
    above = torch.randn(10)
    values = head.log_probs(states, targets)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad(v, states, a)[0] for v, a in ((values, above), (expected, above.double())))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_run_with_it_and_a_term_of_the_whole_step_is_the_same_for_any_split(base: Path, tmp_path: Path) -> None:
    figures, saved = [], []
    for name, changes in {
        "small": {"optim__tokens_per_microbatch": 90, "loss__text_loss": SHARE},
        "large": {"loss__text_loss": SHARE},
        "without": {},
    }.items():
        display = Recorder()
        made = run(
            base, tmp_path / name, display=display, loss__sum_to_zero=0.3, lora__dropout=0.0,
            evaluation__every=0.0, optim__max_steps=3, **changes,
        )  # fmt: skip
        figures.append([line["loss"] for line in display.lines if "loss" in line])
        saved.append({key: value.shape for key, value in weights(made.run / "final").items()})
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert figures[0][0] > figures[2][0] + 0.3  # an untrained model knows no text: log 65 nats a token
    assert saved[0] == saved[1] == saved[2]  # a plain adapter


def test_the_first_loss_of_an_untrained_model_has_the_share_of_its_text(base: Path, tmp_path: Path) -> None:
    losses = []
    for share in (0.0, 0.5):
        display = Recorder()
        run(base, tmp_path / str(share), display=display, loss__text_loss=share, optim__max_steps=1,
            lora__dropout=0.0, evaluation__every=0.0)  # fmt: skip
        losses.append(display.lines[0]["loss"])
    assert 2 * losses[1] - losses[0] == pytest.approx(torch.log(torch.tensor(65.0)).item(), abs=0.1)


def test_a_base_without_a_language_head_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    with pytest.raises(InputError, match=r"needs the base's language head, and .* has no lm_head.weight") as caught:
        build_model(make_recipe(folder, tmp_path, loss__text_loss=SHARE), 0, on_meta=True)
    assert "start from the language model itself" in caught.value.hint


def test_logits_that_are_computed_in_another_way_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(str(base), None, BackboneOptions("float32"), 0, seed=0).module
    monkeypatch.setattr(LanguageHead, "logits", lambda self, states: states @ self.weight.T * 0.9)
    with pytest.raises(InputError, match="computes its logits in a way"):
        load_language_head(backbone, str(base), None, torch.float32, on_meta=False)


def test_memory_has_room_for_the_head_and_its_logits(base: Path, tmp_path: Path) -> None:
    splits = make_splits(tmp_path, make_groups(8))
    plain, text = (
        plan_run(make_recipe(base, tmp_path, loss__text_loss=share), splits, 1).memory for share in (0.0, SHARE)
    )
    before, after = (memory.estimate(memory.choose()[0]) for memory in (plain, text))
    assert after.parameters - before.parameters == 65 * 32 * 4
    assert before.activations is not None
    assert after.activations is not None
    assert after.activations > before.activations
