"""The Python that opens a reward model without rmtrain, for its card."""

from typing import Any

from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import mapping
from rmtrain.reporting.text import python_literal

# the loader's arguments for a base quantised as in training
_QUANTISED = {
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
    'bnb_4bit_compute_dtype={dtype}, llm_int8_skip_modules=["score"]',
    "int8": 'load_in_8bit=True, llm_int8_skip_modules=["score"]',
}


def snippet(record: RunRecord, base_id: str | None, commit: Any, adapter: bool, dtype: str) -> str:
    """Python that scores one conversation with transformers, and peft for an adapter, in this folder."""
    contract = mapping(record.sidecar.get("contract"))
    dtype = f"torch.{dtype}" if dtype in ("float32", "bfloat16", "float16") else "torch.float32"
    quantised = _QUANTISED.get(str(record.setting("model", "quantization")), "").format(dtype=dtype) if adapter else ""
    names = ["AutoModelForSequenceClassification", "AutoTokenizer", *(["BitsAndBytesConfig"] if quantised else [])]
    lines = ["import torch"]
    if adapter:
        lines.append("from peft import PeftModel" if base_id else "from peft import PeftConfig, PeftModel")
    lines += [
        f"from transformers import {', '.join(names)}",
        "",
        'folder = "."  # this folder, or the hub id that it was uploaded as',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]
    options = f"num_labels=1, dtype={dtype}, pad_token_id=tokenizer.pad_token_id"
    if quantised:
        lines.append(f"quantised = BitsAndBytesConfig({quantised})")
        options += ", quantization_config=quantised"
    if adapter:
        name = python_literal(base_id) if base_id else "PeftConfig.from_pretrained(folder).base_model_name_or_path"
        revision = f", revision={python_literal(commit)}" if base_id and commit else ""
        lines += [
            f"base = {name}",
            f"model = AutoModelForSequenceClassification.from_pretrained(\n    base{revision}, {options}\n)",
            "# transformers says that score.weight is missing: the adapter brings it",
            "model = PeftModel.from_pretrained(model, folder).eval()",
        ]
    else:
        lines.append(f"model = AutoModelForSequenceClassification.from_pretrained(\n    folder, {options}\n).eval()")
    lines += [
        "",
        "conversation = [",
        '    {"role": "user", "content": "What is the capital of France?"},',
        '    {"role": "assistant", "content": "Paris."},',
        "]",
        "text = tokenizer.apply_chat_template(conversation, tokenize=False)",
        'ids = tokenizer(text, add_special_tokens=False)["input_ids"]',
    ]
    if contract.get("prepend_bos"):
        lines.append("ids = [tokenizer.bos_token_id, *ids]  # the chat template leaves it out")
    if contract.get("append_eos"):
        lines.append("ids = [*ids, tokenizer.eos_token_id]  # the chat template leaves it out")
    lines += [
        "with torch.no_grad():",
        "    reward = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, 0].item()",
        "print(reward)",
    ]
    return "\n".join(lines)
