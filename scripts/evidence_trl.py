"""The peer in docs/evidence.md: TRL's own command, given the processor time that an arm of rmtrain takes.

The command and its settings are those of TRL's LoRA example for reward models (trl/scripts/reward.py), but for what
makes it faster on a CPU: float32 without autocast, and no recomputation of activations. It trains on every preference
of the training prompts as a pair. Its number of steps is chosen beforehand, so that its schedule ends with the time.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIRS = 8  # a step, as in the example
SETTINGS = (
    *("--learning_rate", "1.0e-4", "--per_device_train_batch_size", str(PAIRS), "--max_length", "2048"),
    *("--use_peft", "--lora_task_type", "SEQ_CLS", "--lora_r", "32", "--lora_alpha", "16"),
    *("--bf16", "False", "--gradient_checkpointing", "False", "--use_cpu", "True"),
    *("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none"),
)
PROBED = (2, 12)  # steps of the two short runs that tell what a step takes


def write_pairs(files: Mapping[Path, int | None], folder: Path) -> int:
    """Write every preference of the first rows of each file, or of all, as a row of messages; returns their number."""
    pairs = []
    for row in (
        json.loads(line) for file, most in files.items() for line in file.read_text("utf-8").splitlines()[:most]
    ):
        prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        for better, worse in _ranked(row):
            messages = {"chosen": better, "rejected": worse}
            pairs.append({"prompt": prompt, **{name: _answer(text) for name, text in messages.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return len(pairs)


def _ranked(row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The better and the worse answer of each preference of a row."""
    if "chosen" in row:
        return [(row["chosen"], row["rejected"])]
    answers, scores = row["completions"], row.get("scores", [])
    ranked = [(better, worse) for better, a in enumerate(scores) for worse, b in enumerate(scores) if a > b]
    return [(answers[better], answers[worse]) for better, worse in row.get("preferences", ranked)]


def _answer(text: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}] if isinstance(text, str) else text


def processor_seconds(line: Sequence[str], work: Path) -> float:
    """Run a command to its end; seconds of the processor, of the system's too, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, check=True, cwd=work, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@dataclass(frozen=True)
class Peer:
    """TRL's command on prepared pairs: base model, folder of the pairs, and options beside those of its example."""

    model: Path
    data: Path
    options: Sequence[str]

    def train(self, output: Path, seed: int, steps: int) -> float:
        """Train for so many steps; returns the processor seconds."""
        command = str(Path(sys.executable).parent / "trl")
        where = ("--model_name_or_path", str(self.model), "--dataset_name", str(self.data), "--output_dir", str(output))
        length = ("--seed", str(seed), "--max_steps", str(steps))
        return processor_seconds([command, "reward", *where, *SETTINGS, *self.options, *length], self.data.parent)

    def plan(self, budget: float, work: Path) -> dict[str, Any]:
        """How many steps fit into the seconds, by two short runs of different lengths; the start counts."""
        few, many = (self.train(work / f"probe-{steps}", 0, steps) for steps in PROBED)
        step = (many - few) / (PROBED[1] - PROBED[0])
        steps = max(1, int((budget - few) / step) + PROBED[0])
        return {"budget": round(budget, 1), "step": round(step, 2), "steps": steps}
