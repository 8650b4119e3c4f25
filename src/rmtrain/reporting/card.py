"""The model card: what a hub or a colleague reads beside the weights, as `README.md`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rmtrain.errors import CheckpointError
from rmtrain.files import write_atomic
from rmtrain.reporting.record import RunRecord, read_run
from rmtrain.reporting.setup import base_model, training_lines
from rmtrain.reporting.snippet import snippet
from rmtrain.reporting.summary import BENCHMARK_NAMES, eras, mapping
from rmtrain.reporting.text import block, count, decimal, interval, markdown, percent, plain

NAME = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILE = re.compile(r"\.(jsonl|jsonl\.gz|json|parquet|csv)$")
_WITHOUT_PLACE = ("base model", "commit of the base model")  # the card tells these in its first sentence
_UNFENCED = ("`", "<", ">", "](")  # kept out of the recipe's fence, for readers that are lax about fences


def write_model_card(run: Path) -> Path:
    """Write `final/README.md` into a run folder: what the model is, how to use it, how good it is, how it was made.

    Raises:
        CheckpointError: it is no run folder, or has no final model.
        OSError: the file can't be written.
    """
    record = read_run(run, with_rows=False)
    folder = run / "final"
    if not folder.is_dir():
        raise CheckpointError(f"{run} has no final model", "finish the run with `rmtrain train --resume`")
    path = folder / NAME
    write_atomic(path, _card(record, adapter=(folder / "adapter_config.json").exists()))
    return path


def write_exported_card(folder: Path, run: Path | None, sidecar: dict[str, Any]) -> Path:
    """Write README.md into the folder of an exported model, with the figures of its run where there is one.

    Args:
        folder: of the exported model.
        run: the run folder that it comes from; None where it comes from no run.
        sidecar: the content of the exported model's rmtrain.json, with `exported`.

    Raises:
        OSError: the file can't be written.
    """
    recipe = mapping(sidecar.get("recipe"))
    record = RunRecord(folder, {}, recipe, sidecar, [], [], {}, {}, {}, ())
    if run is not None:
        record = replace(read_run(run, with_rows=False), sidecar=sidecar)
    path = folder / NAME
    write_atomic(path, _card(record, adapter=False, exported=mapping(sidecar.get("exported"))))
    return path


def _card(record: RunRecord, adapter: bool, exported: Mapping[str, Any] | None = None) -> str:
    base = base_model(record)
    dtype = str(exported["dtype"] if exported else record.setting("model", "dtype"))
    base_id = base["name"] if _is_hub_id(base["name"], base["commit"]) else None
    kind = "a LoRA adapter for" if adapter else "a sequence-classification model made from"
    origin = _place(base["name"], base_id is not None) if base["name"] else "an unnamed base model"
    if base["commit"]:
        origin += f" at commit {markdown(base['commit'])}"
    parts = [
        _front_matter(record, base_id, adapter),
        f"# {markdown(record.name)}",
        f"A reward model: it gives a conversation one number, higher for answers that are preferred. It is {kind} "
        f"{origin}, trained with rmtrain on {_data_sentence(record)}.",
        "Rewards mean something only against each other, for answers to the same prompt: sigmoid of their difference "
        "is the probability that the first is preferred.",
        "## How to use it",
        f"```python\n{snippet(record, base_id, base['commit'], adapter, dtype)}\n```",
        "The reward is read at the last token of the conversation, rendered without a generation prompt. "
        f"{_precision(dtype)}",
        *([_export(exported)] if exported else []),
        "## Evaluation",
        *_evaluation(record),
        "## How it was made",
        _table(("setting", "value"), [line for line in training_lines(record) if line.label not in _WITHOUT_PLACE]),
        *_data(record),
        _versions(record),
        *_recipe(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(record: RunRecord, base_id: str | None, adapter: bool) -> str:
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification",
        **({"base_model": base_id} if base_id else {}),
        "tags": ["reward-model", "rmtrain", *(["lora"] if adapter else [])],
    }
    datasets = [source for source in _sources(record) if _is_dataset_id(source)]
    if datasets:
        values["datasets"] = [re.split("[@:]", source)[0] for source in datasets]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=10_000)
    return f"---\n{text}---"


def _export(exported: Mapping[str, Any]) -> str:
    proof = mapping(exported.get("proof"))
    merged = (
        "Its LoRA adapters were merged into the base in float32" if exported["merged"] else "It was read in float32"
    )
    quantised = (
        "" if exported["quantization"] == "none" else f", the base being what its {exported['quantization']} stood for"
    )
    return (
        f"{merged}{quantised}; it is stored in {exported['dtype']}, the score head in float32. On {count(proof['n'])} "
        f"completions of rmtrain’s {proof['data']} data, whose rewards less their prompt’s mean have a standard "
        f"deviation of {proof['standard_deviation']:.3g}, that moved none by more than {proof['merging']:.2g} "
        f"(merging) and {proof['storing']:.2g} (storing)."
    )


def _precision(dtype: str) -> str:
    if dtype in ("bfloat16", "float16"):
        return (
            "Loaded like this the score head is rounded to half precision; `rmtrain score --ckpt .` keeps it in "
            "float32, as in training and in the figures below."
        )
    return "`rmtrain score --ckpt .` scores whole files."


def _evaluation(record: RunRecord) -> list[str]:
    if not record.splits and not record.benchmarks:
        return ["It has not been evaluated yet." if record.manifest else "No evaluation came with it."]
    parts = []
    if record.splits:
        rows = [
            (
                name,
                count(result.get("n")),
                percent(result.get("accuracy")),
                interval(result.get("accuracy_low"), result.get("accuracy_high")),
                percent(result.get("accuracy_strict")),
                count(result.get("ties")),
                percent(result.get("length_baseline")),
                decimal(result.get("ece")),
            )
            for name, result in record.splits.items()
        ]
        heads = ("split", "n", "accuracy", "95 % interval", "ties wrong", "ties", "longer wins", "ECE")
        parts += [
            "Ranking accuracy over n preferences; a tie counts 1/2. The interval takes preferences of one prompt as "
            "dependent. “Longer wins” is what preferring the longer answer gives.",
            _table(heads, rows),
        ]
    scores = [
        (
            BENCHMARK_NAMES.get(name, name),
            era,
            count(result.get("n")),
            percent(score.get("mean_of_sections"), 2),
            interval(score.get("low"), score.get("high"), 2),
            percent(score.get("with_prior_sets"), 2),
        )
        for name, result in record.benchmarks.items()
        for era, score in eras(result).items()
    ]
    if scores:
        parts.append(_table(("benchmark", "era", "n", "score", "95 % interval", "with prior sets"), scores))
    return parts


def _data(record: RunRecord) -> list[str]:
    """What was kept of each split, where the manifest tells."""
    rows = []
    for name, entry in mapping(record.manifest.get("data")).items():
        found = mapping(entry)
        books = mapping(found.get("rows"))
        dropped = ", ".join(f"{cause} {count(number)}" for cause, number in mapping(books.get("dropped")).items())
        rows.append(
            (
                name,
                _name_only(found.get("source")),
                count(books.get("total")),
                count(books.get("kept")),
                dropped or "none",
                count(found.get("groups")),
            )
        )
    return [_table(("split", "source", "rows", "kept", "dropped", "groups used"), rows)] if rows else []


def _versions(record: RunRecord) -> str:
    versions = {"Python": record.manifest.get("python"), **mapping(record.manifest.get("versions"))}
    told = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in versions.items() if version)
    return f"Made with {told}." if told else ""


def _recipe(record: RunRecord) -> list[str]:
    """The resolved recipe, without the places of local files."""
    if not record.recipe:
        return []
    text = yaml.dump(_without_places(record.recipe), Dumper=_FencedDumper, sort_keys=False, width=10_000)
    for character in _UNFENCED:
        text = text.replace(character, "".join(f"\\x{ord(c):02x}" for c in character))
    return ["The resolved recipe:", f"```yaml\n{block(text)}\n```"]


class _FencedDumper(yaml.SafeDumper):
    """Puts text with what could leave its fence in double quotes, where YAML can escape it."""


_FencedDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if any(character in text for character in _UNFENCED) else None
    ),
)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain(key): _without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_places(entry) for entry in value]
    return _name_only(value) if isinstance(value, str) else value


def _data_sentence(record: RunRecord) -> str:
    named = [_place(source, _is_dataset_id(source)) for source in _sources(record)]
    return ", ".join(named) or "data that the run folder does not name"


def _sources(record: RunRecord) -> list[str]:
    source = record.setting("data", "source")
    found = source.values() if isinstance(source, dict) else [source] if source else []
    return list(dict.fromkeys(plain(entry) for entry in found))


def _place(name: Any, on_hub: bool) -> str:
    if str(name) == "demo":
        return "rmtrain’s built-in demo data"
    return markdown(name) if on_hub else f"the local {markdown(_name_only(name))}"


def _name_only(name: Any) -> str:
    """The last part of a path on this machine; other text as it is."""
    text = plain(name)
    local = text.startswith(("/", "~", "./", "../", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if local else text


def _is_hub_id(name: Any, commit: Any) -> bool:
    """A model from the hub has a commit; without one, a name that is no path and of which there is no folder."""
    text = str(name or "")
    return bool(_HUB_ID.fullmatch(text)) and (bool(commit) or not Path(text).exists())


def _is_dataset_id(source: str) -> bool:
    name = re.split("[@:]", source)[0]
    return name != "demo" and bool(_HUB_ID.fullmatch(name)) and not _FILE.search(name)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
