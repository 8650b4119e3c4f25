"""Train a policy by GRPO with a reward model as its reward.

    python docs/examples/grpo.py --ckpt runs/… --policy HuggingFaceTB/SmolLM2-135M-Instruct --prompts prompts.jsonl

Each line of the prompts file has a `prompt`: text, or a list of messages. All options of TRL's GRPOConfig may follow.
"""

import dataclasses
import sys

from datasets import load_dataset
from transformers import AutoTokenizer, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from rmtrain import RewardFunction


@dataclasses.dataclass
class Names:
    """What is trained with what."""

    ckpt: str
    policy: str
    prompts: str


def main(arguments: list[str]) -> None:
    parser = HfArgumentParser([Names, GRPOConfig])
    parser.set_defaults(output_dir="grpo-out", report_to=["none"])
    names, config = parser.parse_args_into_dataclasses(arguments)
    trainer = GRPOTrainer(
        model=names.policy,
        reward_funcs=RewardFunction(names.ckpt),
        args=config,
        train_dataset=load_dataset("json", data_files=names.prompts, split="train"),
        processing_class=AutoTokenizer.from_pretrained(names.policy),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
