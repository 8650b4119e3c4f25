"""PairRM, tiny and in the layout of its files, against plain torch on the same tensors."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_groups, write_pairs
from published_cases import Tensors
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from rmtrain import RewardFunction
from rmtrain.cli.compare import compare
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.cli.score import score
from rmtrain.data.types import Message
from rmtrain.errors import CheckpointError, DataError, InputError
from rmtrain.evaluation.differences import _in_order_of, compare_rows
from rmtrain.evaluation.results import ScoredRow, read_rows
from rmtrain.evaluation.subsets import credits_by_rule
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.published.pair_rm import PairRenderer

HIDDEN, HEADS, LAYERS, BUCKETS, POSITIONS = 32, 4, 2, 8, 64
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
TEXT = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
SPLIT = [*TEXT.split(), "response.USER:", "USER:", "Assistant:", "<Response", "1>", "1>:", "2>", "2>:"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *SPLIT, *WORDS, *MARKERS]))
CONFIG = {
    "architectures": ["DebertaV2PairRM"],
    "model_type": "deberta-v2",
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "max_relative_positions": -1,
    "position_buckets": BUCKETS,
    "position_biased_input": False,
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "n_tasks": 2,
    "drop_out": 0.05,
    "pad_token_id": 0,
    "torch_dtype": "float32",
    **{
        f"{name}_prefix_id": VOCABULARY.index(m) for name, m in zip(("source", "cand1", "cand2"), MARKERS, strict=False)
    },
}


def all_tensors() -> Tensors:
    """As DebertaV2PairRM saves them."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "encoder.rel_embeddings.weight": (2 * BUCKETS, HIDDEN),
    }
    norms = ["embeddings.LayerNorm", "encoder.LayerNorm"]
    linear = {}
    for layer in (f"encoder.layer.{i}." for i in range(LAYERS)):
        linear |= {f"{layer}attention.self.{n}_proj": (HIDDEN, HIDDEN) for n in ("query", "key", "value")}
        linear |= {f"{layer}attention.output.dense": (HIDDEN, HIDDEN)}
        linear |= {f"{layer}intermediate.dense": (48, HIDDEN), f"{layer}output.dense": (HIDDEN, 48)}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"{name}.{part}": (HIDDEN,) for name in norms for part in ("weight", "bias")}
    shapes = {f"pretrained_model.{name}": shape for name, shape in shapes.items()}
    shapes |= {"head_layer.1.weight": (HIDDEN, 2 * HIDDEN), "head_layer.1.bias": (HIDDEN,)}
    shapes |= {"head_layer.4.weight": (2, HIDDEN), "head_layer.4.bias": (2,)}
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.8 for name, shape in shapes.items()}


@cache
def bucket(distance: int) -> int:
    """DeBERTa's log buckets: exact up to half of them, then logarithmic (arXiv 2006.03654, as in version 2)."""
    middle = BUCKETS // 2
    if abs(distance) <= middle:
        return distance
    far = torch.tensor(abs(distance) / middle).log() / torch.tensor((POSITIONS - 1) / middle).log() * (middle - 1)
    return int(far.ceil() + middle) * (1 if distance > 0 else -1)


def states_of(tensors: Tensors, ids: list[int]) -> Tensor:
    """[T, H] last hidden states of one DeBERTa sequence, with disentangled attention."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"pretrained_model.{name}.weight"].T + tensors[f"pretrained_model.{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = (tensors[f"pretrained_model.{name}.{part}"] for part in ("weight", "bias"))
        return layer_norm(x, (HIDDEN,), weight, bias, 1e-7)

    x = norm(tensors["pretrained_model.embeddings.word_embeddings.weight"][ids], "embeddings.LayerNorm")
    relative = norm(tensors["pretrained_model.encoder.rel_embeddings.weight"], "encoder.LayerNorm")
    place = torch.tensor([[bucket(i - j) + BUCKETS for j in range(len(ids))] for i in range(len(ids))])
    place = place.clamp(0, 2 * BUCKETS - 1)
    for layer in (f"encoder.layer.{i}." for i in range(LAYERS)):
        q, k, v = (
            linear(x, f"{layer}attention.self.{n}_proj").unflatten(1, (HEADS, -1)) for n in ("query", "key", "value")
        )
        rel_q, rel_k = (
            linear(relative, f"{layer}attention.self.{n}_proj").unflatten(1, (HEADS, -1)) for n in ("query", "key")
        )
        scores = torch.einsum("ihd,jhd->hij", q, k)
        scores = (
            scores + torch.einsum("ihd,ijhd->hij", q, rel_k[place]) + torch.einsum("jhd,ijhd->hij", k, rel_q[place])
        )
        mixed = torch.einsum("hij,jhd->ihd", (scores / (3 * HIDDEN / HEADS) ** 0.5).softmax(-1), v).flatten(1)
        x = norm(linear(mixed, f"{layer}attention.output.dense") + x, f"{layer}attention.output.LayerNorm")
        inner = linear(gelu(linear(x, f"{layer}intermediate.dense")), f"{layer}output.dense")
        x = norm(inner + x, f"{layer}output.LayerNorm")
    return x


def logit(source: str, first: str, second: str) -> float:
    """That the first candidate is better."""
    pieces = [f"<|source|> {source}", f"<|candidate1|> {first}", f"<|candidate2|> {second}"]
    unknown = VOCABULARY.index("[UNK]")
    ids = [
        VOCABULARY.index(word) if word in VOCABULARY else unknown
        for piece in pieces
        for word in ["[CLS]", *piece.split(), "[SEP]"]
    ]
    tensors = all_tensors()
    at = {marker: states_of(tensors, ids)[ids.index(VOCABULARY.index(marker))] for marker in MARKERS[:3]}

    def head(candidate: str) -> Tensor:
        both = torch.cat([at["<|source|>"], at[candidate]])
        hidden = torch.tanh(both @ tensors["head_layer.1.weight"].T + tensors["head_layer.1.bias"])
        return hidden @ tensors["head_layer.4.weight"].T + tensors["head_layer.4.bias"]

    return float((head("<|candidate1|>") - head("<|candidate2|>")).mean())


def write(folder: Path, change: Callable[[Tensors], Any] = lambda tensors: None, **config: Any) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}
    specials = {f"{name}_token": token for name, token in names.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **specials)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.save_pretrained(folder)
    tensors = all_tensors()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return str(folder)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_margins_are_those_of_the_published_computation_in_any_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = write(tmp_path / "PairRM-hf"), str(write_pairs(tmp_path / "pairs.jsonl", 4))
    margins = []
    for tokens in (8192, 1):
        evaluate(ckpt=folder, data=data, tokens_per_batch=tokens, json=True)
        result = json.loads(capsys.readouterr().out)
        margins.append([row.margins for row in read_rows(Path(result["rows"]))])
    truth = []
    for group in make_groups(4):
        texts = [completion[0].content for completion in group.completions]
        source = f"{TEXT}USER: {group.prompt[0].content}\nAssistant: <Response 1>"
        for pair in group.preferences:
            better, worse = (f"<Response 1>: {texts[i]}" for i in (pair.better, pair.worse))
            truth.append((logit(source, better, worse) - logit(source, worse, better)) / 2)
    assert torch.tensor(truth).std() > 0.05
    for found in margins:
        assert [margin for row in found for margin in row] == pytest.approx(truth, abs=2e-5)
    assert result["accuracy_strict"] == sum(margin > 0 for margin in truth) / len(truth)
    assert result["reward_length_correlation"] is None
    assert result["published"]["layout"] == "PairRM"


def test_candidates_of_the_same_tokens_have_a_margin_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [("w1 w2", "w1  w2"), ("w3 " * 1500, "w3 " * 1400), ("w4", "w5")]
    rows = [{"prompt": f"w{i}", "chosen": chosen, "rejected": rejected} for i, (chosen, rejected) in enumerate(texts)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(ckpt=write(tmp_path / "PairRM-hf"), data="pairs.jsonl", json=True)
    result = json.loads(capsys.readouterr().out)
    margins = [row.margins for row in read_rows(Path(result["rows"]))]
    assert margins[:2] == [(0.0,), (0.0,)]
    assert margins[2] != (0.0,)
    assert result["ties"] == result["identical"] == 2


def test_earlier_turns_are_in_source_and_candidates(tmp_path: Path) -> None:
    renderer = load_checkpoint(write(tmp_path / "PairRM-hf")).renderer
    assert isinstance(renderer, PairRenderer)
    group = make_groups(1, k=2)[0]
    turns = (Message("system", "w0"), Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    tokenized, lengths = renderer.tokenize_pairs(
        group._replace(prompt=turns, completions=tuple((Message("assistant", text),) for text in ("w4", "w5 w6")))
    )
    first, second = ("w4", "w5 w6") if group.preferences[0].better == 0 else ("w5 w6", "w4")
    words = (
        f"[CLS] <|source|> {TEXT}USER: w0 w1 Assistant: <Response 1> USER: w3 Assistant: <Response 2> [SEP] "
        f"[CLS] <|candidate1|> <Response 1>: w2 <Response 2>: {first} [SEP] "
        f"[CLS] <|candidate2|> <Response 1>: w2 <Response 2>: {second} [SEP]"
    )
    assert renderer.tokenizer.convert_ids_to_tokens(tokenized.suffixes[0].tolist()) == words.split()
    assert lengths == [9, 10]
    for bad in ((Message("assistant", "w1"),), (Message("user", "w1 <|candidate1|>"),)):
        with pytest.raises(DataError, match=r"PairRM"):
            renderer.tokenize_pairs(group._replace(prompt=bad))


def test_long_texts_lose_their_end(tmp_path: Path) -> None:
    renderer = load_checkpoint(write(tmp_path / "PairRM-hf")).renderer
    assert isinstance(renderer, PairRenderer)
    group = make_groups(1, k=2)[0]
    long = group._replace(
        prompt=(Message("user", "w1 " * 3000),),
        completions=((Message("assistant", "w2 " * 3000),), (Message("assistant", "w3"),)),
        preferences=group.preferences[:1],
    )
    tokenized, _ = renderer.tokenize_pairs(long)
    source, one, other = 1224, (2048 - 1224) // 2, 6
    assert tokenized.truncated
    assert [len(suffix) for suffix in tokenized.suffixes] == [source + one + other] * 2
    assert [suffix[source - 1] for suffix in tokenized.suffixes] == [2, 2]


@pytest.mark.parametrize("name", ["head_layer.1.bias", "pretrained_model.encoder.layer.1.output.dense.weight", "x"])
def test_wrong_or_missing_tensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        if tensors.pop(name, None) is None:
            tensors[name] = torch.ones(1)

    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(write(tmp_path / "PairRM-hf", damage))


def test_a_tokenizer_without_the_markers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="markers"):
        load_checkpoint(write(tmp_path / "PairRM-hf", source_prefix_id=7))


def test_benchmarks_of_pairs_are_scored_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "PairRM-hf")
    rows = [{"prompt": "w1", "chosen": f"w{i}", "rejected": "w9 w8", "subset": "hep-go", "id": i} for i in range(2, 6)]
    (tmp_path / "rb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewardbench(ckpt=folder, data="rb.jsonl", json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["subsets"]["hep-go"]["n"]) == (4, 4)
    compare(result["rows"], result["rows"], json=True)
    assert json.loads(capsys.readouterr().out)["difference"] == 0


def test_margins_follow_their_preferences_when_rows_are_matched() -> None:
    a = ScoredRow("1", "", (3.0, 2.0, 1.0), ((0, 1), (1, 2)), False)
    b = ScoredRow("1", "", (), ((1, 2), (0, 1)), False, (4, 4, 4), margins=(-1.0, 2.0))
    result = compare_rows([a], [b]).overall
    assert (result.a, result.b) == (1.0, 0.5)
    assert credits_by_rule([_in_order_of(a, b)], "pairs").official.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("margins", [[1.0], [1.0, "2"], 3])
def test_a_rows_file_with_other_margins_than_preferences_is_refused(margins: Any, tmp_path: Path) -> None:
    row = {"id": "1", "source": "", "rewards": [], "preferences": [[0, 1], [1, 2]], "truncated": False}
    (tmp_path / "x.rows.jsonl").write_text(json.dumps({**row, "lengths": [1, 1, 1], "margins": margins}) + "\n")
    with pytest.raises(DataError, match=r"x\.rows\.jsonl:1"):
        read_rows(tmp_path / "x.rows.jsonl")


def test_commands_that_need_rewards_say_so(tmp_path: Path) -> None:
    folder, data = write(tmp_path / "PairRM-hf"), write_pairs(tmp_path / "pairs.jsonl", 2)
    with pytest.raises(InputError, match="score needs rewards"):
        score(str(data), tmp_path / "out.jsonl", ckpt=folder)
    row = {"prompt": "w1", "chosen": ["w2"] * 3, "rejected": ["w5"] * 3, "id": 1, "domain": "chat"}
    (tmp_path / "rm.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="rm-bench needs rewards"):
        rewardbench(ckpt=folder, benchmark="rm-bench", data="rm.jsonl")
    pair = {"prompt": "w1", "chosen": "w2", "rejected": "w3", "subset": "hep-go", "id": 1}
    (tmp_path / "rb.jsonl").write_text(json.dumps(pair) + "\n")
    with pytest.raises(InputError, match="--parity needs a decoder"):
        rewardbench(ckpt=folder, data="rb.jsonl", parity="float32")
    with pytest.raises(InputError, match="one prompt and no labels"):
        evaluate(ckpt=folder, data=str(data), prompt="raw")


def test_it_can_not_be_the_reward_of_a_policy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compares two completions and gives no rewards"):
        RewardFunction(write(tmp_path / "PairRM-hf"))
