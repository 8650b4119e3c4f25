"""What was trained, on what and how, as labelled lines from the manifest and the resolved recipe."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import Line, mapping
from rmtrain.reporting.text import count, duration, is_figure, percent, scientific


def training_lines(record: RunRecord) -> list[Line]:
    """How the run trained; what the run folder does not tell is left out."""
    base, select, seed = base_model(record), record.setting("evaluation", "select"), record.manifest.get("seed")
    model, data, loss, optim = (mapping(record.recipe.get(name)) for name in ("model", "data", "loss", "optim"))
    epochs, head = scientific(optim.get("epochs")), optim.get("head_learning_rate")
    return _lines(
        {
            "base model": base["name"],
            "commit of the base model": base["commit"],
            "method": record.recipe and _method(mapping(record.recipe.get("lora")), model.get("quantization")),
            "precision": model and f"{model.get('dtype')}, score head and rewards in float32",
            "packing": model.get("packing"),
            "loss": loss
            and _joined(
                "Bradley-Terry, every group of the same weight",
                loss.get("margin") and f"margin {scientific(loss['margin'])} times the score gap",
                loss.get("centering") and f"centring {scientific(loss['centering'])}",
            ),
            "optimiser": optim
            and _joined(
                optim.get("optimizer"),
                f"learning rate {scientific(optim.get('learning_rate'))}",
                head and f"of the head {scientific(head)}",
                optim.get("schedule"),
                f"warm-up {percent(optim.get('warmup_ratio'), 0)}",
                optim.get("weight_decay") and f"weight decay {scientific(optim['weight_decay'])}",
            ),
            "batch": optim
            and f"{count(optim.get('global_batch_size'))} groups a step, {epochs} epoch{'' if epochs == '1' else 's'}",
            "length": data
            and f"at most {count(data.get('max_length'))} tokens a sequence, else {data.get('over_length')}",
            "final model": select and ("last checkpoint" if select == "last" else f"best validation {select}"),
            "seed": None if seed is None else str(seed),
        }
    )


def run_lines(record: RunRecord) -> list[Line]:
    """When, where from and with what the run was made."""
    manifest, totals = record.manifest, mapping(record.manifest.get("totals"))
    seconds, tokens, pairs = (_figure(totals.get(name)) for name in ("seconds", "tokens", "pairs"))
    command = manifest.get("command")
    program, *arguments = command if command and isinstance(command, list) else [""]
    return _lines(
        {
            "recipe": manifest.get("recipe"),
            "command": " ".join([str(program).rsplit("/", 1)[-1], *map(str, arguments)]),  # not where the program is
            "started": manifest.get("started"),
            "ended": manifest.get("ended"),
            "steps": count(manifest["steps"]) if is_figure(manifest.get("steps")) else None,
            "tokens": tokens and count(tokens),
            "time in steps": seconds and duration(seconds),
            "tokens/s": tokens and seconds and count(tokens / seconds),
            "preferences/s": pairs and seconds and count(pairs / seconds),
            "processes": manifest.get("processes"),
            "git commit": manifest.get("git_commit"),
            "versions": version_text(record),
        }
    )


def version_text(record: RunRecord) -> str:
    """Of Python and the libraries."""
    versions = {"Python": record.manifest.get("python"), **mapping(record.manifest.get("versions"))}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def base_model(record: RunRecord) -> dict[str, Any]:
    """Name and hub commit of the base model, as the manifest, the final model or the recipe has it."""
    found = mapping(record.manifest.get("model")) or mapping(record.sidecar.get("base"))
    return {"name": found.get("name") or record.setting("model", "name"), "commit": found.get("commit")}


def _method(lora: Mapping[str, Any], quantization: Any) -> str:
    if not lora:
        return "full fine-tuning"
    targets = lora.get("targets")
    kind = "DoRA" if lora.get("dora") else "rank-stabilised LoRA" if lora.get("rslora") else "LoRA"
    return _joined(
        f"{kind} of rank {lora.get('rank')}, alpha {scientific(lora.get('alpha'))}",
        f"on {', '.join(map(str, targets)) if isinstance(targets, list) else targets}",
        lora.get("dropout") and f"dropout {scientific(lora['dropout'])}",
        quantization not in (None, "none") and f"base quantised to {quantization}",
    )


def _figure(value: Any) -> float:
    return float(value) if is_figure(value) else 0.0


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _lines(values: Mapping[str, Any]) -> list[Line]:
    """A line for each value that is told."""
    return [Line(label, str(value)) for label, value in values.items() if value]
