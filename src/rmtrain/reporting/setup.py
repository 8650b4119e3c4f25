"""What was trained, on what and how, as labelled lines from the manifest and the resolved recipe."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import Line, mapping
from rmtrain.reporting.text import count, duration, is_figure, percent, scientific


def training_lines(record: RunRecord) -> list[Line]:
    """How the run trained; what the run folder does not tell is left out."""
    base, seed = base_model(record), record.manifest.get("seed")
    model, data, loss, optim = (mapping(record.recipe.get(name)) for name in ("model", "data", "loss", "optim"))
    head = optim.get("head_learning_rate")
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
            "batch": optim and f"{count(optim.get('global_batch_size'))} groups a step, {_epochs(record)}",
            "length": data
            and f"at most {count(data.get('max_length'))} tokens a sequence, else {data.get('over_length')}",
            "final model": _final(record),
            "changed on the way": _changes(record),
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


def _epochs(record: RunRecord) -> str:
    """The epochs of the recipe, or the part of them that was made."""
    wanted, made = record.setting("optim", "epochs"), record.steps[-1].get("epoch") if record.steps else None
    text = f"{scientific(wanted)} epoch{'' if wanted == 1 else 's'}"
    short = is_figure(made) and is_figure(wanted) and _figure(made) < _figure(wanted) - 1e-5  # the log rounds it
    return f"{made:.3g} of {text}" if short else text


def _final(record: RunRecord) -> str | None:
    """Which checkpoint the final model is: of older runs, which one was to be."""
    final = mapping(record.manifest.get("final"))
    by = final.get("by") or record.setting("evaluation", "select")
    step, made, planned = final.get("step"), final.get("of"), record.manifest.get("steps")
    stopped = isinstance(made, int) and isinstance(planned, int) and made < planned
    patience = record.setting("evaluation", "stop_after")
    return by and _joined(
        "last checkpoint" if by == "last" else f"best validation {by}",
        by == "accuracy" and "of equal ones that of the lower loss",
        is_figure(step) and f"step {count(step)} of {count(made)}",
        stopped and f"stopped early, after {patience} validations without a better one",
    )


def _changes(record: RunRecord) -> str:
    """Settings with which the run was resumed, and which it did not begin with."""
    resumed = record.manifest.get("resumed")
    parts = [mapping(entry) for entry in resumed] if isinstance(resumed, list) else []
    return "; ".join(
        f"{key}{_from_to(key, values)} at {part.get('from')}"
        for part in parts
        for key, values in mapping(part.get("changed")).items()
    )


def _from_to(key: str, values: Any) -> str:
    """The two values of a setting; none of those that may hold a place on this machine."""
    told = key.startswith(("optim.", "loss.", "lora.", "evaluation.")) and isinstance(values, list) and len(values) == 2
    return f" from {values[0]} to {values[1]}" if told else ""


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
