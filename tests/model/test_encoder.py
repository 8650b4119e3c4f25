"""Encoders with a classification head, tiny and random, against transformers' own forward, one pair at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_groups, write_base, write_pairs
from published_cases import Tensors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rmtrain import RewardFunction
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.cli.score import score
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.data.types import Message, PreferenceGroup, of_ids
from rmtrain.errors import CheckpointError, DataError, InputError
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.published.encoder import TextPairRenderer, mark_answers
from rmtrain.model.published.layouts import ENCODER_TYPES
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.scoring.batches import score_groups

POSITIONS = 64
GROUPS = make_groups(4, seed=3, k=3)
COUNTS_FROM_PAD = ("camembert", "mpnet", "roberta", "xlm-roberta")  # positions start behind the pad token's id
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.5,
    "hidden_act": "gelu",
}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}


def make_tokenizer(kind: str) -> Any:
    """BERT's and DeBERTa's own tokenizers, or one that puts special tokens around a pair as the model's own does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertTokenizer, DebertaV2Tokenizer, PreTrainedTokenizerFast

    if kind in ("bert", "electra"):
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return BertTokenizer(vocab={token: i for i, token in enumerate([*names, *WORDS])})
    if kind == "deberta-v2":
        names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        return DebertaV2Tokenizer(vocab=[(token, 0.0) for token in [*names, *(f"▁{word}" for word in WORDS), "▁"]])
    roberta = kind in COUNTS_FROM_PAD
    cls, sep, pad, unk = ("<s>", "</s>", "<pad>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    vocabulary = [cls, pad, sep, unk, *WORDS]  # RoBERTa's pad token is 1
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pair = f"{cls} $A {sep} {sep} $B {sep}" if roberta else f"{cls} $A {sep} $B:1 {sep}:1"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=pair, special_tokens=[(cls, 0), (sep, 2)]
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if kind in ("albert", "deberta") else [])]
    tokens = {"cls_token": cls, "sep_token": sep, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **tokens)


def write(folder: Path, kind: str, labels: int = 1, template: str | None = None, **changes: Any) -> Path:
    tokenizer = make_tokenizer(kind)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **OWN.get(kind, {}), **changes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def own_forward(folder: Path, *texts: str, label: int = 0, **options: Any) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", **options)
    with torch.no_grad():
        return float(model(**encoded).logits[0, label])


def truth_of(folder: Path, label: int = 0) -> torch.Tensor:
    return torch.tensor(
        [[own_forward(folder, g.prompt[0].content, c[0].content, label=label) for c in g.completions] for g in GROUPS]
    )


def rewards_of(
    checkpoint: Checkpoint, groups: list[PreferenceGroup] = GROUPS, tokens_per_batch: int = 4096
) -> torch.Tensor:
    renderer, length = checkpoint.renderer, checkpoint.max_length
    assert isinstance(renderer, TextPairRenderer)
    tokenized = [g for g in tokenize_groups(groups, Tokenization(renderer, length, "truncate_prompt")) if g]
    marked = mark_answers(groups, tokenized, Tokenization(renderer, length, "truncate_prompt"))
    return torch.tensor(score_groups(checkpoint.model, marked, renderer.pad_id, tokens_per_batch))


def test_all_kinds_are_tested() -> None:
    assert set(OWN) | {"bert"} | set(COUNTS_FROM_PAD) == set(ENCODER_TYPES)


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_rewards_are_those_of_transformers_own_forward_in_any_batch(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, kind)
    checkpoint, truth = load_checkpoint(str(folder)), truth_of(folder)
    assert truth.std() > 0.01
    for tokens_per_batch in (4096, 1):
        found = rewards_of(checkpoint, tokens_per_batch=tokens_per_batch)
        torch.testing.assert_close(found, truth, atol=2e-5, rtol=0)
    assert checkpoint.published["layout"] == "an encoder with a classification head"
    assert "pair of texts" in checkpoint.published["prompt"]
    assert "pair of texts" in checkpoint.notes[0]


def test_token_ids_are_refused(tmp_path: Path) -> None:
    group = GROUPS[0]._replace(prompt=(of_ids([1, 2]),), completions=((of_ids([3]),), (of_ids([4]),)))
    with pytest.raises(DataError, match="the rows hold token ids, and an encoder reads texts"):
        rewards_of(load_checkpoint(str(write(tmp_path, "bert"))), [group])


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_both_texts_have_their_type(kind: str, tmp_path: Path) -> None:
    """A separator within the question is no border; DeBERTa tells its texts apart only where it has types for it."""
    folder = write(tmp_path / "typed", kind, type_vocab_size=2)
    group = GROUPS[0]._replace(prompt=(Message("user", "w1 [SEP] w2"),), completions=((Message("assistant", "w3"),),))
    found = rewards_of(load_checkpoint(str(folder)), [group])
    assert float(found) == pytest.approx(own_forward(folder, "w1 [SEP] w2", "w3"), abs=2e-5)
    one = own_forward(folder, "w1 [SEP] w2", "w3", return_token_type_ids=False)
    assert float(found) != pytest.approx(one, abs=1e-3)


def test_earlier_turns_are_joined_and_a_template_makes_one_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "plain", "bert")
    turns = (Message("system", "w0"), Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    group = GROUPS[0]._replace(prompt=turns, completions=((Message("assistant", "w4"),),))
    found = rewards_of(load_checkpoint(str(folder)), [group])
    assert float(found) == pytest.approx(own_forward(folder, "w0\n\nw1\n\nw2\n\nw3", "w4"), abs=2e-5)
    template = "{% for m in messages %} {{ m['content'] }}{% endfor %}"
    prompted = load_checkpoint(str(folder), prompt=template)
    assert float(rewards_of(prompted, [group])) == pytest.approx(own_forward(folder, "w0 w1 w2 w3 w4"), abs=2e-5)
    assert prompted.published["prompt"] == template
    for own in (template, "[CLS]" + template + " [SEP]"):  # its own special tokens or the tokenizer's, once
        checkpoint = load_checkpoint(str(write(tmp_path / str(len(own)), "bert", template=own)))
        assert float(rewards_of(checkpoint, [group])) == pytest.approx(float(rewards_of(prompted, [group])), abs=2e-5)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 64), ("roberta", 62), ("deberta-v2", 40)])
def test_long_questions_lose_their_beginning_and_are_counted(kind: str, limit: int, tmp_path: Path) -> None:
    folder = write(tmp_path, kind)
    if kind == "deberta-v2":  # the tokenizer's limit
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": limit}))
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.max_length == limit
    words = [WORDS[i % 60] for i in range(100)]
    long = GROUPS[0]._replace(
        prompt=(Message("user", " ".join(words)),), completions=((Message("assistant", "w1 w2"),),), preferences=()
    )
    (tokenized,) = tokenize_groups([long], Tokenization(checkpoint.renderer, limit, "truncate_prompt"))
    assert tokenized is not None
    assert (tokenized.truncated, tokenized.lengths) == (True, (limit,))
    room = limit - len(make_tokenizer(kind)("", "w1 w2")["input_ids"])
    kept = own_forward(folder, " ".join(words[-room:]), "w1 w2")
    assert float(rewards_of(checkpoint, [long])) == pytest.approx(kept, abs=2e-5)


# What is refused


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "bert.pooler.dense.weight"),
        ("bert", "classifier.weight"),
        ("deberta-v2", "pooler.dense.bias"),
        ("roberta", "classifier.dense.weight"),
        ("roberta", "classifier.out_proj.weight"),
        ("modernbert", "head.dense.weight"),
        ("modernbert", "model.layers.1.mlp.Wi.weight"),
    ],
)
def test_wrong_or_missing_tensors_are_refused_by_name(kind: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, kind)

    def refused(change: Callable[[Tensors], Any], named: str) -> None:
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors", metadata={"format": "pt"})
        (tmp_path / "model.safetensors").rename(tmp_path / "kept")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(str(tmp_path))
        assert named in caught.value.message
        (tmp_path / "changed.safetensors").unlink()
        (tmp_path / "kept").rename(tmp_path / "model.safetensors")

    refused(lambda tensors: tensors.pop(name), "classifier.weight" if name.startswith("classifier.out") else name)
    refused(lambda tensors: tensors.update({name: tensors[name][..., :-1].clone()}), name)
    refused(lambda tensors: tensors.update({"gate.0.weight": torch.ones(2)}), "gate.0.weight")


def test_a_buffer_of_older_files_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "deberta-v2")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    old = {**tensors, "deberta.embeddings.position_ids": torch.arange(POSITIONS)[None]}
    torch.save(old, tmp_path / "pytorch_model.bin")
    found = rewards_of(load_checkpoint(str(tmp_path)))
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(found, truth_of(tmp_path), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_one_of_several_labels_must_be_named(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, kind, labels=2)
    with pytest.raises(CheckpointError, match=r"2 labels.*\n.*--label: LABEL_0, LABEL_1"):
        load_checkpoint(str(folder))
    checkpoint = load_checkpoint(str(folder), label="1")
    torch.testing.assert_close(rewards_of(checkpoint), truth_of(folder, label=1), atol=2e-5, rtol=0)
    assert checkpoint.published["label"] == 1


def test_half_precision_is_for_those_who_ask(tmp_path: Path) -> None:
    folder = write(tmp_path, "deberta-v2")
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    whole = load_checkpoint(str(folder))
    half = load_checkpoint(str(folder), options=BackboneOptions("bfloat16"))
    assert (whole.model.module.dtype, half.model.module.dtype) == (torch.float32, torch.bfloat16)
    assert 0 < (rewards_of(whole) - rewards_of(half)).abs().max() < 0.1 * rewards_of(whole).abs().max()


# Commands


def test_commands_score_an_encoder_or_say_that_they_need_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "reward-model-deberta-v3", "deberta-v2")
    rows = [{"prompt": "w1 w2", "completions": ["w3", "w4 w5"]}, {"prompt": "w9 " * 70, "completions": ["w6", "w7"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", ckpt=str(folder))
    found = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[0] == pytest.approx([own_forward(folder, "w1 w2", text) for text in ("w3", "w4 w5")], abs=2e-5)
    assert len(found) == 2
    assert "2 rows scored, 1 truncated to 64 tokens" in capsys.readouterr().err
    evaluate(ckpt=str(folder), data=str(write_pairs(tmp_path / "pairs.jsonl", 3)), json=True)
    assert "pair of texts" in json.loads(capsys.readouterr().out)["published"]["prompt"]
    pair = {"prompt": "w1", "chosen": "w2", "rejected": "w3", "subset": "hep-go", "id": 1}
    (tmp_path / "rb.jsonl").write_text(json.dumps(pair) + "\n")
    with pytest.raises(
        InputError, match=r"an encoder .*\(DebertaV2ForSequenceClassification\): --parity needs a decoder"
    ):
        rewardbench(ckpt=str(folder), data="rb.jsonl", parity="float32")
    with pytest.raises(InputError, match="it is no decoder with one"):
        load_backbone(str(folder), None, BackboneOptions("float32"), 0, seed=0)


def test_a_decoder_with_classifier_weights_is_no_encoder(tmp_path: Path) -> None:
    folder = write_base(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "classifier.weight": torch.ones(1, 32)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no score head \(score\.weight\)"):
        load_checkpoint(str(folder))


def test_trainers_of_policies_take_an_encoder_as_their_reward(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", "deberta-v2", labels=3)
    reward = RewardFunction(folder, label="2")
    for group, expected in zip(GROUPS, truth_of(folder, label=2), strict=True):
        found = reward.score(group.prompt[0].content, [completion[0].content for completion in group.completions])
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="reads question and answer apart"):
        reward.score_texts(["w1 w2"])
    with pytest.raises(InputError, match="label"):
        RewardFunction(folder)
