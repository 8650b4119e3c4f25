"""How a run was trained, as labelled lines from its manifest and resolved recipe."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import Line, mapping
from rmtrain.reporting.text import count, duration, is_figure, percent, scientific

_OBJECTIVES = {
    "bradley_terry": "Bradley-Terry",
    "scaled": "Bradley-Terry scaled by the score gap",
    "norm_bt": "Bradley-Terry normalised by the distance of hidden states",
    "plackett_luce": "Plackett-Luce over each group's ranking",
    "ordinal": "ordered logit on graded preferences",
    "regression": "regression on scores",
    "hinge": "hinge",
}


def training_lines(record: RunRecord) -> list[Line]:
    """Settings of the training, without unknown ones."""
    base, seed = base_model(record), record.manifest.get("seed")
    model, data, loss, optim = (mapping(record.recipe.get(name)) for name in ("model", "data", "loss", "optim"))
    head = optim.get("head_learning_rate")
    objective = str(loss.get("objective") or "bradley_terry")  # older recipes name none
    return _lines(
        {
            "base model": base.name,
            "commit of the base model": base.commit,
            "method": record.recipe and _method(mapping(record.recipe.get("lora")), model.get("quantization")),
            "precision": model and f"{model.get('dtype')}, score head and rewards in float32",
            "packing": model.get("packing"),
            "loss": loss
            and _joined(
                f"{_OBJECTIVES.get(objective, objective)}, with the same weight for every {_weighed(loss)}",
                loss.get("margin") and f"margin {scientific(loss['margin'])} times the score gap",
                loss.get("centering") and f"centring {scientific(loss['centering'])}",
                loss.get("label_smoothing") and f"label smoothing {scientific(loss['label_smoothing'])}",
                loss.get("sum_to_zero") and f"sum to zero {scientific(loss['sum_to_zero'])}",
                loss.get("length_decorrelation") and f"length decorrelation {scientific(loss['length_decorrelation'])}",
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
            "batch": optim and f"{count(optim.get('global_batch_size'))} groups per step, {_epochs(record)}",
            "length": data
            and f"at most {count(data.get('max_length'))} tokens per sequence, longer ones: {data.get('over_length')}",
            "final model": _final(record),
            "changed on resuming": _changes(record),
            "seed": None if seed is None else str(seed),
        }
    )


def run_lines(record: RunRecord) -> list[Line]:
    """Times, speed, command and versions of the run."""
    manifest, totals = record.manifest, mapping(record.manifest.get("totals"))
    seconds, tokens, pairs = (_figure(totals.get(name)) for name in ("seconds", "tokens", "pairs"))
    command = manifest.get("command")
    program, *arguments = command if command and isinstance(command, list) else [""]
    return _lines(
        {
            "recipe": manifest.get("recipe"),
            "command": " ".join([str(program).rsplit("/", 1)[-1], *map(str, arguments)]),  # no folder
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
    """Versions of Python and the libraries."""
    versions = {"Python": record.manifest.get("python"), **mapping(record.manifest.get("versions"))}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


class BaseModel(NamedTuple):
    """The model from which training started."""

    name: Any
    commit: Any  # on the hub


def base_model(record: RunRecord) -> BaseModel:
    """The base model according to the manifest, the final model or the recipe."""
    base = mapping(record.manifest.get("model")) or mapping(record.sidecar.get("base"))
    return BaseModel(base.get("name") or record.setting("model", "name"), base.get("commit"))


def _epochs(record: RunRecord) -> str:
    """The epochs of the recipe, and how many were completed if fewer."""
    wanted, made = record.setting("optim", "epochs"), record.steps[-1].get("epoch") if record.steps else None
    text = f"{scientific(wanted)} epoch{'' if wanted == 1 else 's'}"
    short = is_figure(made) and is_figure(wanted) and _figure(made) < _figure(wanted) - 1e-5  # the log is rounded
    return f"{made:.3g} of {text}" if short else text


def _final(record: RunRecord) -> str | None:
    """The checkpoint that became the final model; for older runs, the rule that chose it."""
    final = mapping(record.manifest.get("final"))
    by = final.get("by") or record.setting("evaluation", "select")
    step, made, planned = final.get("step"), final.get("of"), record.manifest.get("steps")
    stopped = isinstance(made, int) and isinstance(planned, int) and made < planned
    patience = record.setting("evaluation", "stop_after")
    return by and _joined(
        "last checkpoint" if by == "last" else f"best validation {str(by).replace('_', ' ')}",
        by == "mean_accuracy" and "over the entries",
        by in ("accuracy", "mean_accuracy") and "then lower loss",
        is_figure(step) and f"step {count(step)} of {count(made)}",
        stopped and f"stopped early after {patience} validations without an improvement",
    )


def _changes(record: RunRecord) -> str:
    """Settings that changed when the run was resumed."""
    resumed = record.manifest.get("resumed")
    parts = [mapping(entry) for entry in resumed] if isinstance(resumed, list) else []
    return "; ".join(
        f"{key}{_from_to(key, values)} at {part.get('from')}"
        for part in parts
        for key, values in mapping(part.get("changed")).items()
    )


def _from_to(key: str, values: Any) -> str:
    """The old and the new value of a setting, unless they may contain a local path."""
    safe = key.startswith(("optim.", "loss.", "lora.", "evaluation.")) and isinstance(values, list) and len(values) == 2
    return f" from {values[0]} to {values[1]}" if safe else ""


def _weighed(loss: Mapping[str, Any]) -> str:
    return "preference" if loss.get("average_over") == "preferences" else "group"  # older recipes do not say


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
    """One line per value that is not empty."""
    return [Line(label, str(value)) for label, value in values.items() if value]
