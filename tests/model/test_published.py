"""Other people's reward models, tiny and in the layout of their files, against plain torch on the same tensors."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, make_config, make_tokenizer
from published_cases import CASES, GROUPS, Case, Tensors, save_pickles
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.batch import pack
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.published import load
from rmtrain.model.weights import fingerprint_of
from rmtrain.scoring.batches import score_groups


def rewards_of(checkpoint: Checkpoint, tokens_per_batch: int = 4096) -> torch.Tensor:
    renderer = checkpoint.renderer
    tokenized = [
        g for g in tokenize_groups(GROUPS, Tokenization(renderer, checkpoint.max_length, "error")) if g is not None
    ]
    return torch.tensor(score_groups(checkpoint.model, tokenized, renderer.pad_id, tokens_per_batch))


def expected(case: Case, folder: Path, rendered: str, eos: bool) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for group in GROUPS:
        texts = [rendered.format(p=group.prompt[0].content, r=c[0].content) for c in group.completions]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        rows.append([case.reward([1] * case.bos + row + [2] * eos) for row in ids])
    return torch.tensor(rows)


# Rewards


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rewards_are_those_of_the_published_computation_in_any_batch(case: Case, tmp_path: Path) -> None:
    folder = case.write(tmp_path)
    checkpoint = load_checkpoint(str(folder))
    truth = expected(case, folder, case.rendered, case.eos)
    assert truth.std() > 0.05
    assert checkpoint.model.packing == "shared_prompt"
    torch.testing.assert_close(rewards_of(checkpoint), truth, atol=2e-5, rtol=0)
    torch.testing.assert_close(rewards_of(checkpoint, 1), truth, atol=2e-5, rtol=0)
    padded = [g for g in tokenize_groups(GROUPS, Tokenization(checkpoint.renderer, 512, "error")) if g is not None]
    checkpoint.model.module.set_attn_implementation("sdpa")
    with torch.no_grad():
        rewards = checkpoint.model.module(**pack(padded, "none", checkpoint.renderer.pad_id)).logits
    torch.testing.assert_close(rewards.view_as(truth), truth, atol=2e-5, rtol=0)


def test_a_prompt_can_be_chosen_by_name_or_by_template(tmp_path: Path) -> None:
    case = CASES["ultrarm"]
    folder = case.write(tmp_path)
    named = load_checkpoint(str(folder), prompt="ultrarm-fastchat")
    truth = expected(case, folder, "User: {p}\n\nAssistant: {r}\n\n", eos=True)
    torch.testing.assert_close(rewards_of(named), truth, atol=2e-5, rtol=0)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}.{% endfor %}")
    own = load_checkpoint(str(folder), prompt=str(template))
    torch.testing.assert_close(rewards_of(own), expected(case, folder, "{p}.{r}.", eos=True), atol=2e-5, rtol=0)
    assert len({named.fingerprint, own.fingerprint, load_checkpoint(str(folder)).fingerprint}) == 3
    assert named.published == {"layout": "UltraRM-13b", "prompt": "ultrarm-fastchat", "label": None}
    with pytest.raises(InputError, match=r"there is no prompt 'ultrarn'.*\n.*ultrarm-fastchat"):
        load_checkpoint(str(folder), prompt="ultrarn")


def test_a_turn_after_an_answer_is_kept_apart_from_it() -> None:
    from rmtrain.data.types import Message
    from rmtrain.model.published.prompts import PROMPTS

    tokenizer = make_tokenizer()
    tokenizer.chat_template = PROMPTS["ultrarm"].chat_template
    chat = [Message(role, text).as_dict() for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "


# Layouts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("fault", ["no head", "no layer", "no norm", "unknown", "shape", "bias", "labels"])
def test_wrong_or_missing_tensors_are_refused_by_name(case: Case, fault: str, tmp_path: Path) -> None:
    biased = f"{case.head}.bias" in case.all_tensors()
    norm = "final_layer_norm.weight" if case.prefix == "gpt_neox." else "norm.weight"
    projection = next(name for name in case.all_tensors() if name.startswith(case.prefix) and "layers.1.mlp" in name)
    named = {
        "no head": f"{case.head}.weight",
        "no layer": f"{case.prefix}layers.1.",
        "no norm": case.prefix + norm,
        "unknown": f"{case.prefix}layers.0.surprise.weight",
        "shape": projection,
        "bias": f"{case.head}.bias",
        "labels": "its score head has 3 labels",
    }[fault]

    def damage(tensors: Tensors) -> None:
        for prefix in (case.prefix, *case.extra.values()):
            if fault in ("no layer", "no norm"):
                gone = prefix + named.removeprefix(case.prefix)
                for name in [name for name in tensors if name.startswith(gone)]:
                    del tensors[name]
            if fault == "shape":
                name = prefix + named.removeprefix(case.prefix)
                tensors[name] = tensors[name][:-1]
        if fault == "no head":
            del tensors[named]
        elif fault == "unknown":
            tensors[named] = torch.ones(2)
        elif fault == "bias" and biased:
            del tensors[named]
        elif fault == "bias":
            tensors[named] = torch.ones(1)
        elif fault == "labels":
            tensors[f"{case.head}.weight"] = tensors[f"{case.head}.weight"].repeat(3, 1)

    folder = case.write(tmp_path, damage)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert named in caught.value.message


def test_two_names_of_one_backbone_must_agree(tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors["model.model.norm.weight"] = tensors["model.model.norm.weight"] + 1

    folder = CASES["starling-7b"].write(tmp_path, damage)
    with pytest.raises(CheckpointError, match=r"transformer\.norm\.weight|model\.model\.norm\.weight"):
        load_checkpoint(str(folder))


def test_layouts_that_differ_in_their_prompt_alone_are_not_guessed_at(tmp_path: Path) -> None:
    folder = CASES["starling-34b"].write(tmp_path).rename(tmp_path / "downloaded")
    with pytest.raises(CheckpointError, match="Starling-RM-7B-alpha and Starling-RM-34B"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["ultrarm", "ziya"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_the_name_of_a_head_alone_makes_no_known_model(name: str, kind: str, tmp_path: Path) -> None:
    folder = CASES[name].write(tmp_path).rename(tmp_path / "Eurus-RM-7b")  # whose head is called as UltraRM's
    (folder / "config.json").write_text(json.dumps({**CASES[name].config, "model_type": kind}))
    with pytest.raises(CheckpointError, match=f"its config is of '{kind}', and not of 'llama'"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["ultrarm", "ziya"])
@pytest.mark.parametrize("jinja", [True, False])
def test_a_chat_template_of_its_own_is_not_passed_over_for_the_name_of_a_head(
    name: str, jinja: bool, tmp_path: Path
) -> None:
    case = CASES[name]
    folder = case.write(tmp_path).rename(tmp_path / "a-copy")
    read = load_checkpoint(str(folder))  # without a template there is but one prompt
    if jinja:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    with pytest.raises(InputError, match="but its tokenizer has a chat template of its own"):
        load_checkpoint(str(folder))
    asked = load_checkpoint(str(folder), prompt=name)
    known = load_checkpoint(str(folder.rename(tmp_path / Path(case.repository).name)))
    for again in (asked, known):
        torch.testing.assert_close(rewards_of(again), rewards_of(read), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "score.2.weight", "module.score.weight"])
def test_a_head_by_another_name_is_named(name: str, tmp_path: Path) -> None:
    case = CASES["ultrarm"]

    def rename(tensors: Tensors) -> None:
        tensors[name] = tensors.pop("regression_head.weight")

    folder = case.write(tmp_path, rename).rename(tmp_path / "another")
    with pytest.raises(CheckpointError, match="no score head") as caught:
        load_checkpoint(str(folder))
    assert name in caught.value.message
    assert "this layout is not known here" in caught.value.hint


def test_a_tokenizer_elsewhere_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    folder = CASES["starling-7b"].write(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="meta-llama/Llama-2-7b-chat-hf") as caught:
        load_checkpoint(str(folder))
    assert "put its tokenizer files beside the weights" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [("starling-7b", "ask for access to meta-llama/Llama-2-7b-chat-hf"), ("ziya", "IDEA-CCNL/Ziya-LLaMA-7B-Reward")],
)
def test_no_config_is_made_up(name: str, hint: str, tmp_path: Path) -> None:
    folder = CASES[name].write(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"comes without a config\.json") as caught:
        load_checkpoint(str(folder))
    assert hint in caught.value.hint


def test_a_config_from_elsewhere_says_nothing_of_the_weights_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["starling-7b"]
    folder, base = case.write(tmp_path), tmp_path / "base"
    base.mkdir()
    (folder / "config.json").unlink()
    (base / "config.json").write_text(json.dumps({**case.config, "torch_dtype": "float16", "rms_norm_eps": 1e-5}))
    asked: list[str] = []
    monkeypatch.setattr(load, "fetch", lambda name, revision, weights: asked.append(name) or base)
    checkpoint = load_checkpoint(str(folder))
    truth = expected(case, folder, case.rendered, case.eos)
    torch.testing.assert_close(rewards_of(checkpoint), truth, atol=2e-5, rtol=0)
    assert asked == ["meta-llama/Llama-2-7b-chat-hf"]


def test_a_model_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    folder = CASES["oasst"].write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pooling": "mean"}))
    with pytest.raises(CheckpointError, match="pools by 'mean'"):
        load_checkpoint(str(folder))


# Pickles


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(kind: str, tmp_path: Path) -> None:
    folder = CASES["ultrarm"].write(tmp_path)
    file, ran = folder / "pytorch_model-00002-of-00003.bin", tmp_path / "ran"
    payload = {"model.evil": _Touch(ran)}
    if kind == "torch":
        torch.save(payload, file)
    else:
        file.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00003\.bin"):
        load_checkpoint(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", torch.ones(2)], ids=["empty", "text", "tensor"])
def test_a_damaged_pickle_is_named(content: Any, tmp_path: Path) -> None:
    folder = CASES["starling-7b"].write(tmp_path)
    file = folder / "starling_rm.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"starling_rm\.pt"):
        load_checkpoint(str(folder))


def test_the_fingerprint_covers_pickles(tmp_path: Path) -> None:
    case = CASES["ziya"]
    folder = case.write(tmp_path)
    before = fingerprint_of(folder)
    tensors = case.all_tensors()
    tensors["value_head.bias"] += 1
    save_pickles(tensors, folder, 7)
    assert fingerprint_of(folder) != before


# Plain ones


def write_plain(folder: Path, labels: int, names: list[str] | None = None) -> torch.nn.Module:
    """A MistralForSequenceClassification in three safetensors files, as transformers saves it, pad [PAD]."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    changes = {"num_labels": labels, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = make_config("mistral", **changes)
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.score.weight.data *= 20
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    tokenizer.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


def plain_rewards(model: torch.nn.Module, folder: Path, label: int) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def reward(messages: list[dict[str, str]]) -> float:
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids).logits[0, label])

    return torch.tensor([[reward([m.as_dict() for m in g.prompt + c]) for c in g.completions] for g in GROUPS])


def test_the_mistral_baseline_is_a_plain_sequence_classification_model(tmp_path: Path) -> None:
    model = write_plain(tmp_path, 1)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.model.packing == "shared_prompt"
    torch.testing.assert_close(rewards_of(checkpoint), plain_rewards(model, tmp_path, 0), atol=2e-5, rtol=0)


def test_a_backbone_that_cannot_be_packed_takes_padded_rows(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    tokenizer = make_tokenizer()
    config = make_config("falcon", num_labels=1, initializer_range=0.3, vocab_size=len(tokenizer))
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.model.packing == "none"
    assert "it takes padded rows" in checkpoint.notes[0]
    truth = plain_rewards(model, tmp_path, 0)
    for tokens_per_batch in (4096, 1):
        torch.testing.assert_close(rewards_of(checkpoint, tokens_per_batch), truth, atol=2e-5, rtol=0)


def test_a_plain_head_may_have_a_bias(tmp_path: Path) -> None:
    model = write_plain(tmp_path, 2)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save({**model.state_dict(), "score.bias": torch.tensor([5.0, 0.7])}, tmp_path / "pytorch_model.bin")
    found = rewards_of(load_checkpoint(str(tmp_path), label="1"))
    torch.testing.assert_close(found, plain_rewards(model, tmp_path, 1) + 0.7, atol=2e-5, rtol=0)


@pytest.mark.parametrize("where", ["tokenizer", "config", "neither"])
def test_a_pad_token_that_is_the_end_token_is_told_of(where: str, tmp_path: Path) -> None:
    write_plain(tmp_path, 1)
    file, key, value = {
        "tokenizer": ("tokenizer_config.json", "pad_token", "</s>"),
        "config": ("config.json", "pad_token_id", 2),
        "neither": ("config.json", "pad_token_id", 0),
    }[where]
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    told = [note for note in load_checkpoint(str(tmp_path)).notes if "its pad token is its end token (2)" in note]
    assert len(told) == (where != "neither")


@pytest.mark.parametrize(
    ("without", "told"),
    [("", ""), (" {{ eos_token }}", "'</s>' is appended"), ("{{ bos_token }}", "no '<s>', which its")],
)
def test_tokens_beside_those_of_its_chat_template_are_told_of(without: str, told: str, tmp_path: Path) -> None:
    write_plain(tmp_path, 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template = TEMPLATE.replace(without, "")
    tokenizer.save_pretrained(tmp_path)
    notes = load_checkpoint(str(tmp_path)).notes
    assert [told in note for note in notes] == [True] * bool(told)


def test_so_it_is_told_of_adapters_of_others(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    write_plain(tmp_path / "base", 1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    notes = load_checkpoint(str(tmp_path / "adapter")).notes
    assert [note for note in notes if "its pad token is its end token (2)" in note]


def test_plain_weights_in_a_pickle_score_alike(tmp_path: Path) -> None:
    model = write_plain(tmp_path, 1)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(
        rewards_of(load_checkpoint(str(tmp_path))), plain_rewards(model, tmp_path, 0), atol=2e-5, rtol=0
    )


def test_one_of_several_labels_must_be_named(tmp_path: Path) -> None:
    names = ["helpful", "honest", "terse"]
    model = write_plain(tmp_path, 3, names)
    with pytest.raises(CheckpointError, match=r"3 labels.*\n.*--label: helpful, honest, terse"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(InputError, match="no label 'kind'"):
        load_checkpoint(str(tmp_path), label="kind")
    found = []
    for label, index in (("honest", 1), ("2", 2)):
        checkpoint = load_checkpoint(str(tmp_path), label=label)
        found.append(checkpoint.fingerprint)
        assert checkpoint.published["label"] == index
        truth = plain_rewards(model, tmp_path, index)
        torch.testing.assert_close(rewards_of(checkpoint), truth, atol=2e-5, rtol=0)
    assert found[0] != found[1]


def test_two_labels_are_several_even_where_the_config_says_nothing_of_them(tmp_path: Path) -> None:
    write_plain(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"2 labels.*\n.*LABEL_0, LABEL_1"):
        load_checkpoint(str(tmp_path))


def test_a_tensor_without_a_place_is_refused_in_plain_models_too(tmp_path: Path) -> None:
    model = write_plain(tmp_path, 1)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save({**model.state_dict(), "gate.0.weight": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"gate\.0\.weight"):
        load_checkpoint(str(tmp_path))
