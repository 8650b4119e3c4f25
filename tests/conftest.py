"""Tiny models and groups; no network, no telemetry."""

import functools
import gc
import importlib.metadata
import json
import os
import sys
import time

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TQDM_DISABLE="1",
    WANDB_MODE="disabled",
    DS_ACCELERATOR="cpu",
    OMP_NUM_THREADS="1",  # tests run beside each other on two cores
)
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "RMTRAIN_STATUS", "RMTRAIN_DEBUG"):
    os.environ.pop(name, None)
# files outlive a killed process without being synced, which only a lost machine could tell; the disk is not waited for
os.fsync = lambda descriptor: os.fstat(descriptor) and None  # type: ignore[assignment]

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import measured
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

CHECKED = (  # modules whose annotations, with the shapes of arrays, are checked at every call
    "rmtrain.metrics",
    "rmtrain.model.attention",
    "rmtrain.model.batch",
    "rmtrain.model.forward",
    "rmtrain.model.language_model",
    "rmtrain.model.published.encoder",
    "rmtrain.model.published.pair_rm",
    "rmtrain.training.objectives",
)
install_import_hook(CHECKED, "shape_checks.check")

# libraries ask for the version of another, and translate the template of a model card, at every run and every save
importlib.metadata.version = functools.cache(importlib.metadata.version)
jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)  # type: ignore[method-assign,assignment]

from rmtrain import signals
from rmtrain.data.types import Message, Preference, PreferenceGroup

# no bounds by the clock, which a busy machine exceeds
settings.register_profile("unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

TESTS = Path(__file__).parent
LONGEST = (  # files that take longest begin first, so that no worker waits for another in the end
    "training/test_processes.py",
    "cli/test_processes_launched.py",
    "training/test_resume.py",
    "cli/test_end_to_end.py",
    "scripts/test_bench_scripts.py",
    "cli/test_sweep_command.py",
    "training/test_trainer.py",
    "model/test_memory.py",
    "model/test_compiling.py",
    "training/test_compiled_processes.py",
    "training/test_memory_plan.py",
    "training/test_lost_processes.py",
    "training/test_start.py",
    "cli/test_shipped_dry_run.py",
    "training/test_selection.py",
    "model/test_checkpoint.py",
    "cli/test_curate_command.py",
    "cli/test_export_command.py",
    "training/test_mixed_processes.py",
    "training/test_optimizer.py",
    "training/test_checkpointing.py",
    "cli/test_gap_command.py",
    "cli/test_calibrate_command.py",
)
WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %} [INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; with `--dist loadfile --no-loadscope-reorder`, workers take files in this order."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_teardown(_frozen: list[int] = [0]) -> None:  # noqa: B006
    """Take the libraries, as they are imported, out of what every later collection of garbage looks through."""
    if "torch" in sys.modules and len(sys.modules) > _frozen[0] + 100:
        gc.collect()
        gc.freeze()
        _frozen[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    measured.share()


@pytest.fixture(autouse=True, scope="session")
def _shared_measurements(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # of all workers
    os.environ[measured.FOLDER] = str(shared / "measured")


@pytest.fixture(autouse=True)
def _no_late_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that a test sends to its own process has no late echo, for which a run would wait before it ends."""
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))


def make_tokenizer() -> Any:
    """A word tokenizer with Mistral's special tokens and a template like its own; words split at blanks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_config(family: str = "mistral", **changes: Any) -> Any:
    """A two-layer config of a model family."""
    import transformers

    names = {
        "mistral": "MistralConfig",
        "llama": "LlamaConfig",
        "qwen2": "Qwen2Config",
        "qwen3": "Qwen3Config",
        "gemma": "GemmaConfig",
        "gemma2": "Gemma2Config",
        "gemma3_text": "Gemma3TextConfig",
        "phi3": "Phi3Config",
        "gpt2": "GPT2Config",
        "gpt_neox": "GPTNeoXConfig",
        "falcon": "FalconConfig",
        "granite": "GraniteConfig",
        "cohere": "CohereConfig",
    }
    values = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "mistral":
        values["sliding_window"] = None
    if family in ("gpt2", "gpt_neox", "falcon"):
        for key in ("intermediate_size", "num_key_value_heads", "head_dim"):
            del values[key]
    if family == "gpt2":
        values |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return getattr(transformers, names[family])(**(values | changes))


def write_base(folder: Path, family: str = "mistral", seed: int = 0, head: bool = False, **changes: Any) -> Path:
    """A random base model (no score head) with its tokenizer, and with its language head if asked for."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (AutoModelForCausalLM if head else AutoModel).from_config(make_config(family, **changes)).save_pretrained(
            folder
        )
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Mistral."""
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model `rm`, and a `policy` with its reference `sft`."""
    from bench_cases import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own folder is the working folder."""
    monkeypatch.chdir(tmp_path)


def leave_out_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs end without their report, whose figures take longer to draw than a tiny model takes to train."""
    monkeypatch.setattr("rmtrain.reporting.report.write_report", lambda run: run / "report.html")


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_reports(monkeypatch)


def make_groups(count: int, seed: int = 0, k: int = 4) -> list[PreferenceGroup]:
    """Groups that a tiny model can learn: the better completion has the larger share of the first eight words."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(low, high)))

    groups = []
    while len(groups) < count:
        prompt, completions = text(3, 20), [text(1, 15) for _ in range(k)]
        scores = [sum(word in WORDS[:8] for word in c.split()) / len(c.split()) for c in completions]
        preferences = tuple(
            Preference(a, b, scores[a] - scores[b]) for a in range(k) for b in range(k) if scores[a] > scores[b]
        )
        if preferences:
            conversations = tuple((Message("assistant", c),) for c in completions)
            name = f"g{len(groups)}"
            groups.append(PreferenceGroup(name, (Message("user", prompt),), conversations, preferences, "made"))
    return groups


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """The same groups as a jsonl file of the `completions` schema."""
    import json

    with path.open("w", encoding="utf-8") as stream:
        for group in make_groups(count, seed):
            row = {
                "id": group.id,
                "source": group.source,
                "prompt": group.prompt[0].content,
                "completions": [completion[0].content for completion in group.completions],
                "preferences": [[p.better, p.worse] for p in group.preferences],
            }
            stream.write(json.dumps(row) + "\n")
    return path


def write_lines(path: Path | str, rows: Iterable[Any]) -> str:
    """Write rows as JSON lines; returns the path."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def save_reward_model(module: Any, renderer: Any, folder: Path, sidecar: dict[str, Any]) -> None:
    """Write a model as the trainer does, without a training run."""
    from rmtrain.model.saving import check_weights, write_companions
    from rmtrain.model.sidecar import read_scoring
    from rmtrain.model.weights import SIDECAR

    module.save_pretrained(folder)
    scoring = read_scoring({"contract": {}, **sidecar}, folder / SIDECAR)
    write_companions(module.config, renderer, folder, scoring, sidecar)
    check_weights(folder)
