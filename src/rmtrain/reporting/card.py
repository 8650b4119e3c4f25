"""The model card, `README.md` beside the weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rmtrain.errors import CheckpointError
from rmtrain.files import read_bytes, write_atomic
from rmtrain.model.portable import serve_command
from rmtrain.places import name_only, without_places
from rmtrain.recipe.yaml12 import dump_values
from rmtrain.reporting.averages import average_tables
from rmtrain.reporting.data_report import used_tables
from rmtrain.reporting.gap import gap_summary
from rmtrain.reporting.metadata import HUB_ID, front_matter, is_dataset_id, sources
from rmtrain.reporting.record import RunRecord, read_run
from rmtrain.reporting.setup import base_model, training_lines, version_text
from rmtrain.reporting.summary import mapping
from rmtrain.reporting.table import Table, to_markdown
from rmtrain.reporting.tables import benchmark_tables, split_tables
from rmtrain.reporting.text import block, count, markdown, plain, python_literal, render

NAME = "README.md"
_MARK = "\n<!-- as written by rmtrain: "
_UNFENCED = ("`", "<", ">", "](")  # escaped inside the recipe's code fence, since some readers ignore fences


def write_model_card(run: Path) -> Path:
    """Write `final/README.md` into a run folder: purpose, use, evaluation and training of the model.

    Raises:
        CheckpointError: the folder is not a run, or has no final model.
        OSError: the file can't be written.
    """
    record = read_run(run, with_rows=False)
    folder = run / "final"
    if not folder.is_dir():
        raise CheckpointError(f"{run} has no final model", "finish the run with `rmtrain train --resume`")
    return _write(folder, record)


def refresh_model_card(run: Path) -> bool:
    """Rewrite a run's card after its results have changed. Returns False, and writes nothing, if someone edited the
    card.

    Raises:
        CheckpointError, OSError: as `write_model_card`.
    """
    path = run / "final" / NAME
    if path.exists():
        text, _, mark = read_bytes(path).decode(errors="replace").rpartition(_MARK)
        if _marked(text) != f"{text}{_MARK}{mark}":
            return False
    write_model_card(run)
    return True


def _marked(card: str) -> str:
    """A card with a digest of its own text, which shows later whether it was edited."""
    return f"{card}{_MARK}{hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def write_exported_card(folder: Path, run: Path | None, sidecar: Mapping[str, Any]) -> Path:
    """Write README.md into the folder of an exported or averaged model, with the results of its run if it has one.

    `sidecar` is the content of the model's rmtrain.json.

    Raises:
        OSError: the file can't be written.
    """
    if run is None:
        named = folder.with_name(folder.name.removeprefix(".").removesuffix(".staging"))  # its final name
        record = RunRecord(named, manifest={}, recipe=mapping(sidecar.get("recipe")), sidecar=sidecar)
    else:
        record = replace(read_run(run, with_rows=False), sidecar=sidecar)
    return _write(folder, record)


def _write(folder: Path, record: RunRecord) -> Path:
    path = folder / NAME
    write_atomic(path, _marked(_card(record, adapter=(folder / "adapter_config.json").exists())))
    return path


def _card(record: RunRecord, adapter: bool) -> str:
    base = base_model(record)
    exported, averaged = (mapping(record.sidecar.get(name)) for name in ("exported", "averaged"))
    base_id = base.name if _is_hub_id(base.name, base.commit) else None
    quantization = record.setting("model", "quantization")
    dtype = exported.get("dtype") or record.setting("model", "dtype")
    dtype = dtype if dtype in ("bfloat16", "float16") else "float32"
    # the first sentence names the base model
    settings = [line for line in training_lines(record) if line.label not in ("base model", "commit of the base model")]
    values = {
        "record": record,
        "adapter": adapter,
        "base": base,
        "base_id": base_id,
        "base_place": base.name and _place(base.name, base_id is not None),
        "data_places": [_place(source, is_dataset_id(source)) for source in sources(record)],
        "front_matter": Markup(front_matter(record, base_id, adapter)),
        "contract": mapping(mapping(record.sidecar.get("scoring", record.sidecar)).get("contract")),
        "quantised": quantization if adapter and quantization in ("nf4", "int8") else None,
        "dtype": dtype,
        "exported": exported,
        "averaged": average_tables(without_places(averaged, _name_only)) if averaged else [],
        "serve": Markup(serve_command(".", dtype)),
        "gaps": [gap_summary(record.gaps)] if record.gaps else [],
        "results": [
            *split_tables(list(record.splits.values())),
            *(table for result in record.benchmarks.values() for table in benchmark_tables(result)),
        ],
        "training": Table(("setting", "value"), settings, texts=2),
        "data": [
            _data_table(record),
            *(table for name, split in _splits(record).items() for table in used_tables(name, split)),
        ],
        "versions": version_text(record),
        "recipe": Markup(_recipe(record)),
        "literal": lambda value: Markup(python_literal(value)),
    }
    filters = {"to_markdown": lambda table: Markup(to_markdown(table))}
    return render("card.md.j2", lambda value: Markup(markdown(value)), values, filters)


def _splits(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """The splits of the manifest, each a mapping."""
    return {name: mapping(split) for name, split in mapping(record.manifest.get("data")).items()}


def _data_table(record: RunRecord) -> Table:
    """One row per split: kept rows, and dropped rows by cause."""
    rows = []
    for name, entry in _splits(record).items():
        ledger = mapping(entry.get("rows"))
        dropped = ", ".join(f"{cause} {count(n)}" for cause, n in mapping(ledger.get("dropped")).items()) or "none"
        kept = count(ledger.get("total")), count(ledger.get("kept"))
        rows.append((name, _name_only(entry.get("source") or ""), dropped, *kept, count(entry.get("groups"))))
    return Table(("split", "source", "dropped", "rows", "kept", "groups used"), rows, texts=3)


def _recipe(record: RunRecord) -> str:
    """The resolved recipe, without paths of local files."""
    if not record.recipe:
        return ""
    text = dump_values(without_places(record.recipe, _name_only))  # YAML allows such escapes only in double quotes
    for characters in _UNFENCED:
        text = text.replace(characters, "".join(f"\\x{ord(c):02x}" for c in characters))
    return block(text)


def _place(name: Any, on_hub: bool) -> str:
    if str(name) == "demo":
        return "rmtrain’s built-in demo data"
    return str(name) if on_hub else f"the local {_name_only(name)}"


def _name_only(name: Any) -> str:
    return name_only(plain(name))


def _is_hub_id(name: Any, commit: Any) -> bool:
    """Whether a model is on the hub: it has a commit, or a valid hub id that is not a local folder."""
    text = str(name or "")
    return bool(HUB_ID.fullmatch(text)) and (bool(commit) or not Path(text).exists())
