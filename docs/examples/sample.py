"""Draw N answers to each prompt from a policy, for `rmtrain select`.

    python docs/examples/sample.py --policy MODEL --prompts prompts.jsonl --output answers.jsonl

Each line of the prompts file has a `prompt`: text, or a list of messages. For large models use an engine such as vLLM,
which writes the same file: a row `{"prompt": …, "completions": [text, …]}` for each prompt.
"""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.policy)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.policy).to(device).eval()
    with open(options.prompts) as prompts, open(options.output, "w") as answers:
        for line in prompts:
            prompt = json.loads(line)["prompt"]
            messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(device)
            drawn = model.generate(
                **inputs,
                do_sample=True,
                temperature=options.temperature,
                top_k=0,
                num_return_sequences=options.n,
                max_new_tokens=options.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
            texts = tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers.write(json.dumps({"prompt": prompt, "completions": texts}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
