"""Packed rewards, losses and gradients against transformers' own forward, one sequence at a time, in float32."""

import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_config, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_cases import (
    VOCABULARY,
    WINDOW,
    Answer,
    all_pairs,
    answer,
    awkward_groups,
    group,
    model_folder,
    one_at_a_time,
    packed,
    plain_copy,
    sequences,
    with_adapters,
)

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import InputError
from rmtrain.model import attention
from rmtrain.model.batch import GroupSize, Packing, batch_tokens, pack, plan_batches
from rmtrain.model.recompute import checkpointing_options
from rmtrain.model.reward_model import BackboneOptions, choose_packing, load_backbone, reward_model_class

FAMILIES = {
    "mistral": {},
    "mistral, window": {"sliding_window": 6},
    "llama": {},
    "qwen2": {},
    "qwen2, some windows": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "gpt2": {},
}
PACKINGS: tuple[Packing, ...] = ("shared_prompt", "padding_free", "none")
Case = tuple[Path, Answer]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A family's model, and what transformers alone answers on the awkward groups."""
    folder = model_folder(tmp_path_factory.mktemp("packing"), request.param.split(",")[0], **FAMILIES[request.param])
    plain = plain_copy(folder, with_adapters(folder, "none").module)
    groups = awkward_groups()
    return folder, answer(plain, one_at_a_time(plain, groups), all_pairs(groups))


def assert_same(mine: Answer, reference: Answer) -> None:
    torch.testing.assert_close(mine.rewards, reference.rewards, atol=1e-5, rtol=0)
    assert mine.loss == pytest.approx(reference.loss, abs=1e-5)
    assert mine.gradients.keys() == reference.gradients.keys()
    assert any("lora_A" in name for name in mine.gradients)
    assert any("score" in name for name in mine.gradients)
    for name, gradient in reference.gradients.items():
        assert gradient.any(), name
        torch.testing.assert_close(mine.gradients[name], gradient, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("packing", PACKINGS)
def test_rewards_loss_and_gradients_are_those_of_one_sequence_at_a_time(case: Case, packing: Packing) -> None:
    folder, reference = case
    model = with_adapters(folder, packing)
    assert (model.packing, model.notes) == (packing, ())
    groups = awkward_groups()
    assert_same(answer(model.module, packed(model, groups), all_pairs(groups)), reference)


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_split_into_batches_gives_the_same_loss_and_gradients(case: Case, packing: Packing) -> None:
    folder, reference = case
    model, groups = with_adapters(folder, packing), awkward_groups()
    pairs, losses, rewards = all_pairs(groups), [], []
    for part in ([4, 1], [3], [0, 2]):
        mine = [groups[i] for i in part]
        flat = packed(model, mine)
        rewards.append((part, flat.detach()))
        if within := all_pairs(mine):
            better, worse = zip(*within, strict=True)
            loss = torch.nn.functional.softplus(flat[list(worse)] - flat[list(better)]).sum() / len(pairs)
            loss.backward()
            losses.append(loss.item())
    by_group = {i: r for part, flat in rewards for i, r in zip(part, split_rewards(flat, groups, part), strict=True)}
    gradients = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    assert_same(Answer(torch.cat([by_group[i] for i in range(len(groups))]), sum(losses), gradients), reference)


def split_rewards(flat: torch.Tensor, groups: list[TokenizedGroup], part: list[int]) -> tuple[torch.Tensor, ...]:
    return flat.split([len(groups[i].suffixes) for i in part])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(case: Case, reentrant: bool) -> None:
    folder, reference = case
    model = with_adapters(folder, "shared_prompt")
    model.module.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.module.enable_input_require_grads()
    groups = awkward_groups()
    assert_same(answer(model.module, packed(model, groups), all_pairs(groups)), reference)


@pytest.mark.parametrize("packing", PACKINGS)
def test_order_and_batch_do_not_matter(case: Case, packing: Packing) -> None:
    folder, reference = case
    model = with_adapters(folder, packing)
    groups = awkward_groups()
    borders = np.cumsum([0, *(len(g.suffixes) for g in groups)])
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        for cuts in ([5], [2, 3], [1, 1, 1, 1, 1]):
            parts = np.split(np.array(order), np.cumsum(cuts)[:-1])
            with torch.no_grad():
                rewards = torch.cat([packed(model, [groups[i] for i in part]) for part in parts])
            expected = torch.cat([reference.rewards[borders[i] : borders[i + 1]] for i in order])
            torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)


tokens = st.lists(st.integers(5, VOCABULARY - 1), max_size=9)
layouts = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=25)
@given(layouts)
@pytest.mark.parametrize("window", [None, 4])
def test_any_layout_is_exact(random_models: dict[int | None, Any], window: int | None, drawn: Any) -> None:
    model, plain = random_models[window]
    groups = [group(prompt, completions) for prompt, completions in drawn]
    if pairs := all_pairs(groups):
        reference = answer(plain, one_at_a_time(plain, groups), pairs)
        mine = answer(model.module, packed(model, groups), pairs)
        torch.testing.assert_close(mine.rewards, reference.rewards, atol=1e-5, rtol=0)
        assert mine.loss == pytest.approx(reference.loss, abs=1e-5)
        for name, gradient in reference.gradients.items():
            torch.testing.assert_close(mine.gradients[name], gradient, atol=1e-5, rtol=0, msg=name)
    else:
        with torch.no_grad():
            torch.testing.assert_close(packed(model, groups), one_at_a_time(plain, groups), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, Any]:
    made = {}
    for window in (None, 4):
        folder = model_folder(tmp_path_factory.mktemp("random"), "mistral", sliding_window=window)
        model = with_adapters(folder, "shared_prompt")
        made[window] = model, plain_copy(folder, model.module)
    return made


def test_only_the_prompt_once_goes_through_the_backbone() -> None:
    groups = awkward_groups()
    sizes = [GroupSize.of(g) for g in groups]
    whole = sequences(groups)
    for packing, expected in {
        "shared_prompt": sum(len(g.prefix) + sum(map(len, g.suffixes)) for g in groups),
        "padding_free": sum(map(len, whole)),
        "none": len(whole) * max(map(len, whole)),
    }.items():
        batch = pack(groups, packing, pad_id=0)  # type: ignore[arg-type]
        assert batch["input_ids"].numel() == batch_tokens(sizes, packing) == expected  # type: ignore[arg-type]
        ids = batch["input_ids"].flatten()
        assert ids[batch["ends"]].tolist() == [tokens[-1] for tokens in whole]


# What can't be packed


@pytest.mark.parametrize(
    ("family", "reason"), [("gemma2", "soft-capped scores"), ("falcon", "no exchangeable attention")]
)
def test_a_model_that_can_not_be_packed_says_why_and_is_right_in_padded_rows(
    tmp_path: Path, family: str, reason: str
) -> None:
    folder = model_folder(tmp_path, family)
    model = with_adapters(folder, "shared_prompt")
    assert model.packing == "none"
    assert len(model.notes) == 1
    assert reason in model.notes[0]
    groups = awkward_groups()
    plain = plain_copy(folder, model.module)
    reference = answer(plain, one_at_a_time(plain, groups), all_pairs(groups))
    assert_same(answer(model.module, packed(model, groups), all_pairs(groups)), reference)


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("GptOssConfig", {}, "its attention has s_aux"),  # sinks
        ("PhimoeConfig", {"sliding_window": 6}, "0 of its 2 sliding windows are passed to the attention function"),
        ("NemotronConfig", {}, "no layout of a packed batch reaches its attention"),
        ("MiniMaxConfig", {}, "1 of its 2 layers use transformers' exchangeable attention"),  # a recurrent layer
        ("DiffLlamaConfig", {}, "4 of its 2 layers use transformers' exchangeable attention"),
        ("SeedOssConfig", {"attention_dropout": 0.1}, "its attention has dropout"),
        ("BloomConfig", {}, "no exchangeable attention"),
        ("JetMoeConfig", {}, "a trial without its weights failed"),  # its routing looks at real numbers
    ],
)
def test_what_a_layer_does_besides_is_found_before_anything_is_run(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    import transformers

    config = getattr(transformers, name)(**(SMALL | changes))
    chosen, notes = choose_packing(reward_model_class(config), config, "shared_prompt")
    assert chosen == "none"
    assert reason in notes[0]
    assert choose_packing(reward_model_class(config), config, "none") == ("none", [])


def test_attention_dropout_of_gpt2_is_found_by_its_own_name() -> None:
    config = make_config("gpt2", attn_pdrop=0.1)
    chosen, notes = choose_packing(reward_model_class(config), config, "padding_free")
    assert (chosen, "dropout" in notes[0]) == ("none", True)


def test_a_stray_window_in_a_config_whose_family_has_none_is_no_obstacle() -> None:
    config = make_config("llama", sliding_window=4096)
    assert choose_packing(reward_model_class(config), config, "shared_prompt") == ("shared_prompt", [])


def test_a_config_that_refuses_to_have_no_pad_id_is_asked_all_the_same() -> None:
    from transformers import ModernBertDecoderConfig

    config = ModernBertDecoderConfig(**SMALL)
    assert choose_packing(reward_model_class(config), config, "shared_prompt") == ("shared_prompt", [])


def test_a_class_and_config_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("mistral", vocab_size=81)
    assert choose_packing(reward_model_class(config), config, "shared_prompt") == ("shared_prompt", [])
    monkeypatch.setattr(attention, "_OBSTACLES", dict(attention._OBSTACLES))
    monkeypatch.setattr(attention, "_try_packed", lambda *_: "it was asked again")
    config.pad_token_id = 7  # does not matter
    assert choose_packing(reward_model_class(config), config, "shared_prompt") == ("shared_prompt", [])
    other = make_config("mistral", vocab_size=82)
    assert choose_packing(reward_model_class(other), other, "shared_prompt")[0] == "none"


def test_asking_leaves_the_config_and_the_random_state_alone() -> None:
    config = make_config("mistral", vocab_size=83)
    before, state = config.to_dict(), torch.random.get_rng_state()
    assert attention.packing_obstacle(reward_model_class(config), config) is None
    assert config.to_dict() == before
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"attention_mask": torch.zeros(1)}, "a mask of its own"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 50.0}, "soft-capped scores"),
        ({"is_causal": False}, "attention to later tokens"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"layout": None}, "no layout"),
    ],
)
def test_what_packed_attention_does_not_do_is_refused_when_asked_for(wish: dict[str, Any], named: str) -> None:
    x = torch.zeros(1, 1, 3, 8)
    layout = attention.Pass(pack([group([5], [[6]])], "shared_prompt", 0)["layout"])
    arguments = {"attention_mask": None, "layout": layout, "position_ids": torch.zeros(1), "use_cache": False} | wish
    with pytest.raises(InputError, match=named) as error:
        attention.shared_prompt_attention(torch.nn.Identity(), x, x, x, **arguments)
    assert "model.packing: none" in error.value.hint


def test_a_pass_in_which_a_layer_was_left_out_is_refused() -> None:
    config = make_config("mistral", sliding_window=6)
    attention.check_calls([True, True], config)
    for calls in ([True], [True, False], [True, True, True], []):
        with pytest.raises(InputError, match="can't be packed"):
            attention.check_calls(calls, config)


# The GPU's path


def flash_by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: Any, cu_k: Any, scale: float | None, left: int
) -> torch.Tensor:
    """What a variable-length kernel promises: causal, last query at last key, `left` keys back at most (-1: all)."""
    out = torch.empty_like(q)
    repeat = q.shape[1] // k.shape[1]
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
        keys, values = (x[c:d].repeat_interleave(repeat, dim=1).transpose(0, 1) for x in (k, v))
        scores = q[a:b].transpose(0, 1) @ keys.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        distance = torch.arange(d - b + a - c, d - c)[:, None] - torch.arange(d - c)
        hidden = (distance < 0) | ((distance > left) if left >= 0 else torch.zeros_like(distance, dtype=torch.bool))
        out[a:b] = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.mark.parametrize("packing", ["shared_prompt", "padding_free"])
def test_the_layout_means_to_a_variable_length_kernel_what_it_should(
    case: Case, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    signature = inspect.signature(varlen.varlen_attn)
    seen = []

    def stand_in(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        a = given.arguments
        assert isinstance(a["window_size"], tuple)  # a list is not taken for causal
        assert a["window_size"][1] == 0
        assert a["max_q"] == max(b - x for x, b in itertools.pairwise(a["cu_seq_q"].tolist()))
        assert a["max_k"] == max(b - x for x, b in itertools.pairwise(a["cu_seq_k"].tolist()))
        assert a["cu_seq_q"].dtype == a["cu_seq_k"].dtype == torch.int32
        assert a["query"].shape[1] == a["key"].shape[1] or a.get("enable_gqa", True)
        seen.append(a["window_size"])
        return flash_by_hand(
            a["query"], a["key"], a["value"], a["cu_seq_q"], a["cu_seq_k"], a["scale"], a["window_size"][0]
        )

    stand_in.__signature__ = signature  # type: ignore[attr-defined]
    folder, reference = case
    model = with_adapters(folder, packing)
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(attention, "_has_varlen", lambda *_: True)
    groups = awkward_groups()
    assert_same(answer(model.module, packed(model, groups), all_pairs(groups)), reference)
    assert len(seen) == 2


def test_attention_runs_in_the_dtype_of_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation in float32 would else keep full fine-tuning off the half-precision kernel."""
    seen = []
    original = attention._segmentwise

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((query.dtype, key.dtype, value.dtype))
        return original(query, key, value, *rest)

    folder = model_folder(tmp_path, "mistral")
    model = load_backbone(str(folder), None, BackboneOptions("bfloat16"), pad_id=0, seed=0, trainable=True)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    monkeypatch.setattr(attention, "_segmentwise", spy)
    packed(model, awkward_groups())
    assert seen == 2 * [(torch.bfloat16,) * 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 3])
def test_a_cpu_attends_in_float32_within_a_model_of_16_bits(dtype: torch.dtype, window: int | None) -> None:
    layout = pack(awkward_groups(), "shared_prompt", 0)["layout"]
    tokens = layout["query_starts"][-1]
    drawn = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, 8, generator=drawn, dtype=dtype) for heads in (4, 2, 2))
    query.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        output = attention._segmentwise(query, key, value, attention.Pass(layout), None, window)
    wide = (query.float(), key.float(), value.float())
    exact = attention._segmentwise(*wide, attention.Pass(layout), None, window)
    assert output.dtype == dtype
    assert torch.equal(output, exact.to(dtype))  # rounded once, at its end
    (gradient,) = torch.autograd.grad(output.float().square().sum(), query)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("checkpointing", [None, "selective", "full"])
def test_masks_are_made_once_a_batch_whatever_the_number_of_layers(
    tmp_path: Path, checkpointing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_base(tmp_path / "deep", num_hidden_layers=4)
    module = load_backbone(str(folder), None, BackboneOptions("bfloat16"), 0, seed=0, trainable=True).module.train()
    if checkpointing is not None:
        module.gradient_checkpointing_enable(checkpointing_options(checkpointing, 0))
    made = []
    original = attention._lower_right_mask
    monkeypatch.setattr(attention, "_lower_right_mask", lambda *args: made.append(args[:3]) or original(*args))
    for _ in range(2):
        batch = pack(awkward_groups(), "shared_prompt", 0)
        module(**batch).logits.sum().backward()
    shapes = {(length, prompt + length, None) for _, length, _, prompt in batch["layout"]["segments"] if prompt}
    assert sorted(made) == sorted([*shapes, *shapes])


def test_rewards_in_bfloat16_depend_on_batch_and_packing_by_rounding_alone(tmp_path: Path) -> None:
    """Of rewards that spread by 1, within 0.02: bfloat16 has 8 bits, and matrix products group their sums by shape."""
    folder = model_folder(tmp_path, "mistral")
    groups = awkward_groups()
    model = load_backbone(str(folder), None, BackboneOptions("bfloat16"), pad_id=0, seed=0)
    with torch.no_grad():
        together = [packed(model, groups), packed(model, groups[::-1])]
        alone = torch.cat([packed(model, [group]) for group in groups])
        twice = packed(replace(model, packing="padding_free"), groups)
    counts = [len(group.suffixes) for group in groups]
    back = torch.cat([*together[1].split(counts[::-1])][::-1])
    spread = together[0].std().item()
    for other in (alone, twice, back):
        assert (other - together[0]).abs().max().item() < 0.02 * max(spread, 1.0)


# Planning

sizes = st.lists(
    st.builds(GroupSize, st.integers(0, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)),
    max_size=30,
)


@given(sizes, st.sampled_from(PACKINGS), st.integers(1, 200))
def test_a_plan_holds_every_group_once_within_the_budget(
    groups: list[GroupSize], packing: Packing, budget: int
) -> None:
    plan = plan_batches(groups, packing, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(groups)))
    for batch in plan:
        assert batch
        assert len(batch) == 1 or batch_tokens([groups[i] for i in batch], packing) <= budget
    for this, following in itertools.pairwise(plan):  # no batch could have taken the next group too
        assert batch_tokens([groups[i] for i in [*this, following[0]]], packing) > budget


@given(sizes, st.sampled_from(PACKINGS), st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_plan_is_the_same_for_any_order_and_breaks_ties_by_place(
    groups: list[GroupSize], packing: Packing, budget: int, random: Any
) -> None:
    plan = plan_batches(groups, packing, budget)
    assert plan == plan_batches(list(groups), packing, budget)
    longest = [groups[i].prefix + max(groups[i].suffixes) for batch in plan for i in batch]
    assert longest == sorted(longest, reverse=True)
    flat = [i for batch in plan for i in batch]
    assert all(a < b for (a, x), (b, y) in itertools.pairwise(zip(flat, longest, strict=True)) if x == y)
    if len(set(longest)) == len(longest):
        order = list(range(len(groups)))
        random.shuffle(order)
        shuffled = plan_batches([groups[i] for i in order], packing, budget)
        assert [[order[i] for i in batch] for batch in shuffled] == plan


def test_the_window_is_filled() -> None:
    assert max(map(len, sequences(awkward_groups()))) == WINDOW
