"""Tiny checkpoints in the layouts that reward models were published in, and what they must answer, in plain torch."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from conftest import make_groups
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

Tensors = dict[str, Tensor]
HIDDEN, HEADS, LAYERS, VOCAB = 32, 4, 2, 320
GROUPS = make_groups(4, seed=3, k=3)
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
NEOX = {
    "model_type": "gpt_neox_reward_model",
    "architectures": ["GPTNeoXRewardModel"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 512,
    "rotary_pct": 0.5,  # of 8 dimensions a head
    "rotary_emb_base": 10000,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "hidden_act": "gelu",
    "pooling": "last",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def _drawn(shapes: dict[str, tuple[int, ...]], scale: float = 0.3) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def llama_tensors(prefix: str) -> Tensors:
    """A LlamaModel's tensors, as transformers of 2023 named them."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCAB, HIDDEN), "norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        for name, rows in {"q_proj": HIDDEN, "k_proj": 16, "v_proj": 16, "o_proj": HIDDEN}.items():
            shapes[f"layers.{layer}.self_attn.{name}.weight"] = (rows, HIDDEN)
        shapes[f"layers.{layer}.self_attn.rotary_emb.inv_freq"] = (HIDDEN // HEADS // 2,)  # written until 2023
        for name, shape in {"gate_proj": (48, HIDDEN), "up_proj": (48, HIDDEN), "down_proj": (HIDDEN, 48)}.items():
            shapes[f"layers.{layer}.mlp.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"layers.{layer}.{name}.weight"] = (HIDDEN,)
    return {prefix + name: tensor for name, tensor in _drawn(shapes).items()}


def neox_tensors(prefix: str) -> Tensors:
    """A GPTNeoXModel's tensors, with the buffers that transformers of 2023 wrote."""
    shapes: dict[str, tuple[int, ...]] = {"embed_in.weight": (VOCAB, HIDDEN)}
    norms = ["final_layer_norm"]
    for layer in range(LAYERS):
        norms += [f"layers.{layer}.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
        linear = {
            "attention.query_key_value": (3 * HIDDEN, HIDDEN),
            "attention.dense": (HIDDEN, HIDDEN),
            "mlp.dense_h_to_4h": (128, HIDDEN),
            "mlp.dense_4h_to_h": (HIDDEN, 128),
        }
        for name, shape in linear.items():
            shapes |= {f"layers.{layer}.{name}.weight": shape, f"layers.{layer}.{name}.bias": shape[:1]}
        shapes |= {f"layers.{layer}.attention.bias": (1, 1, 4, 4), f"layers.{layer}.attention.masked_bias": ()}
        shapes[f"layers.{layer}.attention.rotary_emb.inv_freq"] = (2,)
    shapes |= {f"{name}.{part}": (HIDDEN,) for name in norms for part in ("weight", "bias")}
    return {prefix + name: tensor for name, tensor in _drawn(shapes, 0.6).items()}


def _rotated(x: Tensor, dimensions: int) -> Tensor:
    """Rotary positions on the first dimensions of [T, heads, D] (arXiv 2104.09864, halves as in GPT-NeoX)."""
    half = dimensions // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b, rest = x[..., :half], x[..., half:dimensions], x[..., dimensions:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def llama_states(tensors: Tensors, prefix: str, ids: list[int]) -> Tensor:
    """[T, H] last hidden states of a Llama with grouped queries."""

    def get(name: str) -> Tensor:
        return tensors[prefix + name]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * get(f"{name}.weight")

    x = get("embed_tokens.weight")[ids]
    for layer in (f"layers.{i}." for i in range(LAYERS)):
        y = norm(x, layer + "input_layernorm")
        q, k, v = ((y @ get(f"{layer}self_attn.{n}_proj.weight").T).unflatten(1, (-1, 8)) for n in "qkv")
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        x = x + _attended(_rotated(q, 8), _rotated(k, 8), v) @ get(f"{layer}self_attn.o_proj.weight").T
        y = norm(x, layer + "post_attention_layernorm")
        gate, up, down = (get(f"{layer}mlp.{n}_proj.weight").T for n in ("gate", "up", "down"))
        x = x + (silu(y @ gate) * (y @ up)) @ down
    return norm(x, "norm")


def neox_states(tensors: Tensors, prefix: str, ids: list[int]) -> Tensor:
    """[T, H] last hidden states of a GPT-NeoX with parallel residuals."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{prefix}{name}.weight"].T + tensors[f"{prefix}{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (HIDDEN,), tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"])

    x = tensors[prefix + "embed_in.weight"][ids]
    for layer in (f"layers.{i}." for i in range(LAYERS)):
        mixed = linear(norm(x, layer + "input_layernorm"), layer + "attention.query_key_value")
        q, k, v = mixed.unflatten(1, (HEADS, 3, 8)).unbind(2)
        attended = linear(_attended(_rotated(q, 4), _rotated(k, 4), v), layer + "attention.dense")
        y = linear(norm(x, layer + "post_attention_layernorm"), layer + "mlp.dense_h_to_4h")
        x = x + attended + linear(gelu(y), layer + "mlp.dense_4h_to_h")
    return norm(x, "final_layer_norm")


def write_llama_tokenizer(folder: Path, **settings: Any) -> None:
    """tokenizer.model and tokenizer_config.json, as Llama's and its descendants' have them: no tokenizer.json."""
    lines = ["Human: User: Assistant: what is this", *(f"w{i} w{i + 1}" for i in range(60))] * 20
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=VOCAB - 5,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.joinpath("tokenizer.model").write_bytes(written.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names, **settings}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config))


def write_oasst_tokenizer(folder: Path) -> None:
    """A tokenizer.json whose end token is BOS, EOS and UNK in one, with roles as special tokens, like Pythia's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "<|padding|>": 1}
    vocabulary |= {letter: i + 2 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|prompter|>", "<|assistant|>", "<|system|>"]})
    tokenizer.pad_token = "<|padding|>"
    tokenizer.save_pretrained(folder)


def save_pickles(tensors: Tensors, folder: Path, shards: int) -> None:
    """pytorch_model-0000i-of-0000n.bin and their index."""
    names, placed = sorted(tensors), {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {name: tensors[name] for name in names[shard::shards]}
        torch.save(part, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    folder.joinpath("pytorch_model.bin.index.json").write_text(json.dumps(index))


def save_safe(tensors: Tensors, folder: Path, shards: int) -> None:
    """model-0000i-of-0000n.safetensors and their index."""
    names, placed = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    folder.joinpath("model.safetensors.index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class Case:
    """One published model, scaled down."""

    repository: str
    config: dict[str, Any]
    tensors: Callable[[], Tensors]
    save: Callable[[Tensors, Path], None]
    tokenizer: Callable[[Path], None]
    states: Callable[[Tensors, str, list[int]], Tensor]
    prefix: str
    head: str
    rendered: str  # with {p} and {r}
    bos: bool = True
    eos: bool = False
    extra: dict[str, str] = field(default_factory=dict)  # second names of tensors

    def write(self, parent: Path, change: Callable[[Tensors], Any] = lambda tensors: None) -> Path:
        """The folder, under the repository's name, after a change of its tensors."""
        folder = parent / self.repository
        folder.mkdir(parents=True)
        tensors = self.all_tensors()
        change(tensors)
        self.save(tensors, folder)
        folder.joinpath("config.json").write_text(json.dumps(self.config))
        self.tokenizer(folder)
        return folder

    def all_tensors(self) -> Tensors:
        """Of the backbone under all its names, and of the head."""
        tensors = self.tensors()
        for first, second in self.extra.items():
            tensors |= {second + n.removeprefix(first): t for n, t in tensors.items() if n.startswith(first)}
        return tensors

    def reward(self, ids: list[int]) -> float:
        """Of one sequence, alone."""
        tensors = self.all_tensors()
        state = self.states(tensors, self.prefix, ids)[-1]
        bias = tensors.get(f"{self.head}.bias", torch.zeros(1))
        return float(state @ tensors[f"{self.head}.weight"][0] + bias)


def _head(name: str, bias: bool) -> Tensors:
    head = _drawn({f"{name}.weight": (1, HIDDEN)})
    return head | ({f"{name}.bias": torch.tensor([0.7])} if bias else {})


CASES = {
    "starling-7b": Case(
        "Starling-RM-7B-alpha",
        LLAMA,
        lambda: {
            **llama_tensors("transformer."),
            **_head("v_head", False),
            "model.lm_head.weight": torch.ones(VOCAB, HIDDEN),
        },
        lambda tensors, folder: torch.save(tensors, folder / "starling_rm.pt"),
        write_llama_tokenizer,
        llama_states,
        "transformer.",
        "v_head",
        "<s>[INST] {p} </s> [/INST] {r}</s>",
        bos=False,  # it is in the text
        extra={"transformer.": "model.model."},
    ),
    "starling-34b": Case(
        "Starling-RM-34B",
        LLAMA,
        lambda: {**llama_tensors("transformer."), **_head("v_head", False)},
        lambda tensors, folder: save_safe(tensors, folder, 2),
        lambda folder: write_llama_tokenizer(folder, add_bos_token=False),
        llama_states,
        "transformer.",
        "v_head",
        "<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n{r}<|im_end|>",
        bos=False,
        eos=True,  # the tiny tokenizer does not know <|im_end|>
    ),
    "ultrarm": Case(
        "UltraRM-13b",
        {**LLAMA, "architectures": ["LlamaRewardModel"]},
        lambda: {**llama_tensors("model."), **_head("regression_head", False)},
        lambda tensors, folder: save_pickles(tensors, folder, 3),
        write_llama_tokenizer,
        llama_states,
        "model.",
        "regression_head",
        "Human: {p}\n\nAssistant: {r}",
    ),
    "ziya": Case(
        "Ziya-LLaMA-7B-Reward",
        {**LLAMA, "auto_map": {"AutoModelForSequenceClassification": "modeling_llama_rm.LlamaRewardModel"}},
        lambda: {**llama_tensors("model."), **_head("value_head", True)},
        lambda tensors, folder: save_pickles(tensors, folder, 7),
        lambda folder: write_llama_tokenizer(folder, add_eos_token=True),
        llama_states,
        "model.",
        "value_head",
        "Human:{p}\n\nAssistant:{r}",
        eos=True,
    ),
    "oasst": Case(
        "oasst-rm-2.1-pythia-1.4b-epoch-2.5",
        NEOX,
        lambda: {**neox_tensors("gpt_neox."), **_head("out_proj", True)},
        lambda tensors, folder: save_pickles(tensors, folder, 1),
        write_oasst_tokenizer,
        neox_states,
        "gpt_neox.",
        "out_proj",
        "<|prompter|>{p}<|endoftext|><|assistant|>{r}<|endoftext|>",
        bos=False,
    ),
}
