"""Write a model of Mistral-7B's shape with random weights, for speed and memory where the real ones are not at hand.

    python scripts/random_model.py --tokenizer models/smollm2-135m-instruct --output models/mistral-7b-random

It ranks no better than chance. The tokenizer is copied from another model folder; ids beyond Mistral's 32,000 would
fall outside of its embedding, so that is made as large as the tokenizer.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a model whose tokenizer is taken")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = MistralConfig(
        vocab_size=max(32000, len(tokenizer)),
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=max(1, options.hidden // 512),
        head_dim=128,
        sliding_window=None,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(options.seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM(config)
    model.cpu().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"{sum(p.numel() for p in model.parameters()):,} random parameters in {options.output}")


if __name__ == "__main__":
    main()
