"""Tune a LoRA policy with TRL's DPOTrainer (arXiv 2305.18290), and write the recipe of a reward model on the same rows.

    python scripts/dpo_policy.py train.jsonl.gz test.jsonl.gz --model models/smollm2-135m-instruct --output dpo
    rmtrain train dpo/recipe.yaml
    rmtrain gap --policy dpo/policy --reference models/smollm2-135m-instruct --ckpt dpo/runs/… --data dpo/test.jsonl

Both see the same preferences once, in batches of the same size, with adapters of the same rank. Rows are read in their
order until there are enough; a row with a sequence above --max-length tokens is left out and counted. In the output
folder: rows.jsonl (the rows that both train on), test.jsonl (held-out rows of the same kind), policy/ (the adapter),
recipe.yaml, and dpo.json (counts and the log; made anew at every checkpoint, so that one of those can be measured too).
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

RANK, ALPHA, BATCH = 16, 32, 16
Row = dict[str, Any]


def read(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def as_chat(row: Row) -> Row:
    """A row of texts or messages, as TRL takes conversations."""
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    answers = {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


def choose_rows(path: Path, tokenizer: Any, pairs: int, max_length: int) -> tuple[list[Row], dict[str, int]]:
    """The first `pairs` rows whose sequences fit, and counts: rows read, left out, and tokens of both sequences."""
    kept: list[Row] = []
    counts = {"read": 0, "too_long": 0, "tokens": 0}
    for row in read(path):
        chat = as_chat(row)
        sides = [chat["prompt"] + chat[key] for key in ("chosen", "rejected")]
        lengths = [len(tokenizer.apply_chat_template(side, return_dict=False)) for side in sides]
        counts["read"] += 1
        if max(lengths) > max_length:
            counts["too_long"] += 1
            continue
        counts["tokens"] += sum(lengths)
        kept.append(row)
        if len(kept) == pairs:
            break
    return kept, counts | {"kept": len(kept)}


def tune(rows: list[Row], counts: dict[str, int], asked: argparse.Namespace, tokenizer: Any) -> None:
    """DPO for one epoch. The adapter is written to policy/, and the log to dpo.json."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    begun = time.process_time()

    class Record(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds = time.process_time() - begun
            values = {"rows": counts, "settings": vars(asked), "cpu_seconds": seconds, "log": state.log_history}
            text = json.dumps(values, default=str, indent=2)
            (asked.output / "dpo.json").write_text(f"{text}\n", encoding="utf-8")

    settings = DPOConfig(
        output_dir=str(asked.output / "checkpoints"),
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        beta=asked.beta,
        learning_rate=asked.learning_rate,
        max_length=asked.max_length,
        precompute_ref_log_probs=True,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=BATCH // 2,
        gradient_checkpointing=False,
        warmup_steps=0.1,  # of all steps
        logging_steps=1,
        save_strategy="steps",
        save_steps=0.25,  # of all steps
        save_total_limit=1,
        report_to="none",
        seed=asked.seed,
    )
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        str(asked.model),
        args=settings,
        train_dataset=Dataset.from_list(list(map(as_chat, rows))),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Record()],
    )
    trainer.train()
    trainer.save_model(str(asked.output / "policy"))


def recipe(asked: argparse.Namespace) -> dict[str, Any]:
    """The reward model on the same rows: the learning rate is that of configs/smollm2_135m.yaml."""
    return {
        "model": {"name": str(asked.model), "dtype": "float32"},
        "lora": {"rank": RANK, "alpha": ALPHA},
        "data": {"source": {"train": str(asked.output / "rows.jsonl")}, "max_length": asked.max_length},
        "optim": {"learning_rate": 5e-4, "epochs": 1, "global_batch_size": BATCH, "tokens_per_microbatch": 1024},
        "evaluation": {"every": 0, "select": "last", "splits": []},
        "run": {"folder": str(asked.output / "runs"), "name": "reward_model", "seed": asked.seed},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="rows with prompt, chosen and rejected: .jsonl or .jsonl.gz")
    parser.add_argument("test_rows", type=Path, help="such rows, to measure on")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--test-pairs", type=int, default=240)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    rows, counts = choose_rows(asked.rows, tokenizer, asked.pairs, asked.max_length)
    held_out, test_counts = choose_rows(asked.test_rows, tokenizer, asked.test_pairs, asked.max_length)
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("rows.jsonl", rows), ("test.jsonl", held_out)):
        (asked.output / name).write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    (asked.output / "recipe.yaml").write_text(yaml.safe_dump(recipe(asked), sort_keys=False), encoding="utf-8")
    print(counts, test_counts, flush=True)
    tune(rows, counts, asked, tokenizer)


if __name__ == "__main__":
    main()
