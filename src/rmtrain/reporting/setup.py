"""What was trained, on what and how, as labelled lines from the manifest and the resolved recipe."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import Line, mapping
from rmtrain.reporting.text import count, duration, is_figure, percent, scientific


def training_lines(record: RunRecord) -> list[Line]:
    """How the run trained; what the run folder does not tell is left out."""
    model = base_model(record)
    lines = [
        ("base model", model["name"]),
        ("commit of the base model", model["commit"]),
        ("method", _method(record)),
        ("precision", _joined(record.setting("model", "dtype"), "score head and rewards in float32")),
        ("packing", record.setting("model", "packing")),
        ("loss", _loss(record)),
        ("optimiser", _optimiser(record)),
        ("batch", _batch(record)),
        ("length", _length(record)),
        ("final model", _selection(record)),
        ("seed", record.manifest.get("seed")),
    ]
    return [Line(label, str(value)) for label, value in lines if value is not None]


def run_lines(record: RunRecord) -> list[Line]:
    """When, where from and with what the run was made."""
    manifest, totals = record.manifest, mapping(record.manifest.get("totals"))
    seconds, tokens, pairs = (_figure(totals.get(name)) for name in ("seconds", "tokens", "pairs"))
    lines = [
        ("recipe", manifest.get("recipe")),
        ("command", _command(manifest)),
        ("started", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("steps", count(manifest["steps"]) if is_figure(manifest.get("steps")) else None),
        ("tokens", count(tokens) if tokens else None),
        ("time in steps", duration(seconds) if seconds else None),
        ("tokens/s", count(tokens / seconds) if tokens and seconds else None),
        ("preferences/s", count(pairs / seconds) if pairs and seconds else None),
        ("processes", manifest.get("processes")),
        ("git commit", manifest.get("git_commit")),
        ("versions", version_text(record)),
    ]
    return [Line(label, str(value)) for label, value in lines if value is not None]


def version_text(record: RunRecord) -> str:
    """Of Python and the libraries."""
    versions = {"Python": record.manifest.get("python"), **mapping(record.manifest.get("versions"))}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _figure(value: Any) -> float | None:
    return float(value) if is_figure(value) else None


def base_model(record: RunRecord) -> dict[str, Any]:
    """Name and hub commit of the base model, as the manifest, the final model or the recipe has it."""
    found = mapping(record.manifest.get("model")) or mapping(record.sidecar.get("base"))
    return {"name": found.get("name") or record.setting("model", "name"), "commit": found.get("commit")}


def _method(record: RunRecord) -> str | None:
    if not record.recipe:
        return None
    lora, quantization = mapping(record.recipe.get("lora")), record.setting("model", "quantization")
    if not lora:
        return "full fine-tuning"
    targets = lora.get("targets")
    kind = "DoRA" if lora.get("dora") else "rank-stabilised LoRA" if lora.get("rslora") else "LoRA"
    return _joined(
        f"{kind} of rank {lora.get('rank')}, alpha {scientific(lora.get('alpha'))}",
        f"on {', '.join(map(str, targets)) if isinstance(targets, list) else targets}",
        f"dropout {scientific(lora['dropout'])}" if lora.get("dropout") else None,
        f"base quantised to {quantization}" if quantization not in (None, "none") else None,
    )


def _loss(record: RunRecord) -> str | None:
    if not record.recipe:
        return None
    margin, centering = record.setting("loss", "margin"), record.setting("loss", "centering")
    return _joined(
        "Bradley-Terry, every group of the same weight",
        f"margin {scientific(margin)} times the score gap" if margin else None,
        f"centring {scientific(centering)}" if centering else None,
    )


def _optimiser(record: RunRecord) -> str | None:
    section = mapping(record.recipe.get("optim"))
    if not section:
        return None
    head = section.get("head_learning_rate")
    return _joined(
        section.get("optimizer"),
        f"learning rate {scientific(section.get('learning_rate'))}",
        f"of the head {scientific(head)}" if head else None,
        section.get("schedule"),
        f"warm-up {percent(section.get('warmup_ratio'), 0)}",
        f"weight decay {scientific(section['weight_decay'])}" if section.get("weight_decay") else None,
    )


def _batch(record: RunRecord) -> str | None:
    section = mapping(record.recipe.get("optim"))
    if not section:
        return None
    epochs = scientific(section.get("epochs"))
    return f"{count(section.get('global_batch_size'))} groups a step, {epochs} epoch{'' if epochs == '1' else 's'}"


def _length(record: RunRecord) -> str | None:
    section = mapping(record.recipe.get("data"))
    if not section:
        return None
    return f"at most {count(section.get('max_length'))} tokens a sequence, else {section.get('over_length')}"


def _selection(record: RunRecord) -> str | None:
    select = record.setting("evaluation", "select")
    return None if select is None else "last checkpoint" if select == "last" else f"best validation {select}"


def _command(manifest: Mapping[str, Any]) -> str | None:
    """The command line, without the folder that the program lies in."""
    command = manifest.get("command")
    if not isinstance(command, list) or not command:
        return None
    return " ".join([str(command[0]).rsplit("/", 1)[-1], *map(str, command[1:])])


def _joined(*parts: Any) -> str | None:
    return ", ".join(str(part) for part in parts if part is not None) or None
