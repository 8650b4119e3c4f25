"""The model card: what a hub or a colleague reads beside the weights, as `README.md`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from rmtrain.errors import CheckpointError
from rmtrain.files import write_atomic
from rmtrain.recipe.render import dump_values
from rmtrain.reporting.record import RunRecord, read_run
from rmtrain.reporting.setup import base_model, training_lines, version_text
from rmtrain.reporting.summary import BENCHMARK_NAMES, eras, mapping
from rmtrain.reporting.text import block, markdown, plain, python_literal, render

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
    if run is None:
        record = RunRecord(folder, manifest={}, recipe=mapping(sidecar.get("recipe")), sidecar=sidecar)
    else:
        record = replace(read_run(run, with_rows=False), sidecar=sidecar)
    path = folder / NAME
    write_atomic(path, _card(record, adapter=False))
    return path


def _card(record: RunRecord, adapter: bool) -> str:
    base, exported = base_model(record), mapping(record.sidecar.get("exported"))
    base_id = base["name"] if _is_hub_id(base["name"], base["commit"]) else None
    sources, quantization = _sources(record), record.setting("model", "quantization")
    dtype = exported.get("dtype") or record.setting("model", "dtype")
    values = {
        "record": record,
        "adapter": adapter,
        "base": base,
        "base_id": base_id,
        "base_place": base["name"] and _place(base["name"], base_id is not None),
        "data_places": [_place(source, _is_dataset_id(source)) for source in sources],
        "front_matter": Markup(_front_matter(sources, base_id, adapter)),
        "contract": mapping(mapping(record.sidecar.get("scoring", record.sidecar)).get("contract")),
        "quantised": quantization if adapter and quantization in ("nf4", "int8") else None,
        "dtype": dtype if dtype in ("bfloat16", "float16") else "float32",
        "exported": exported,
        "scores": [
            (BENCHMARK_NAMES.get(name, name), result.get("n"), era, score)
            for name, result in record.benchmarks.items()
            for era, score in eras(result).items()
        ],
        "training": [line for line in training_lines(record) if line.label not in _WITHOUT_PLACE],
        "data": mapping(record.manifest.get("data")),
        "versions": version_text(record),
        "recipe": Markup(_recipe(record)),
        "literal": lambda value: Markup(python_literal(value)),
        "name_only": _name_only,
    }
    return render("card.md.j2", lambda value: Markup(markdown(value)), values)


def _front_matter(sources: list[str], base_id: str | None, adapter: bool) -> str:
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification",
        **({"base_model": base_id} if base_id else {}),
        "tags": ["reward-model", "rmtrain", *(["lora"] if adapter else [])],
    }
    if datasets := [re.split("[@:]", source)[0] for source in sources if _is_dataset_id(source)]:
        values["datasets"] = datasets
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=10_000)


def _recipe(record: RunRecord) -> str:
    """The resolved recipe, without the places of local files."""
    if not record.recipe:
        return ""
    text = dump_values(_without_places(record.recipe))  # quotes what is not letters and digits, so escapes are read
    for characters in _UNFENCED:
        text = text.replace(characters, "".join(f"\\x{ord(c):02x}" for c in characters))
    return block(text)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain(key): _without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_places(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float)) else _name_only(value)


def _sources(record: RunRecord) -> list[str]:
    source = record.setting("data", "source")
    found = source.values() if isinstance(source, dict) else [source] if source else []
    return list(dict.fromkeys(plain(entry) for entry in found))


def _place(name: Any, on_hub: bool) -> str:
    if str(name) == "demo":
        return "rmtrain’s built-in demo data"
    return str(name) if on_hub else f"the local {_name_only(name)}"


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
