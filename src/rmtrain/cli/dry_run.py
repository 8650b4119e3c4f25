"""`rmtrain train --dry-run`: all checks, the plan and the predicted memory, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json
from rmtrain.cli.processes import processes_wanted
from rmtrain.errors import InputError

if TYPE_CHECKING:
    from rmtrain.data.prepare import ReadySplit
    from rmtrain.data.render import Renderer
    from rmtrain.recipe.schema import Recipe
    from rmtrain.reporting.data_report import DataReport
    from rmtrain.reporting.table import Table
    from rmtrain.training.build import RunPlan


def dry_run(
    recipe: "Recipe",
    num_processes: int | None,
    as_json: bool,
    resume: Path | None = None,
    allow_changes: bool = False,
    verify: bool = True,
) -> None:
    """Run all checks of `train`, and show the plan, its predicted memory, the data report and the first group.

    Raises:
        InputError: as in `train`; if memory is too small, after everything is shown.
    """
    from rmtrain.data.prepare import prepare
    from rmtrain.model.memory import count_parameters
    from rmtrain.model.start import recipe_renderer, start_config
    from rmtrain.reporting.data_report import data_report
    from rmtrain.training.choices import settle, settle_plan
    from rmtrain.training.rehearsal import rehearse

    with TerminalDisplay() as display:
        data, renderer, splits = prepare(recipe, recipe_renderer(recipe.model, verify), display)
        processes = processes_wanted(num_processes, here=False)
        settled = settle(recipe, resume)
        settled, plan = settle_plan(settled, splits, processes)
        recipe = settled.recipe
        rehearsed = rehearse(recipe, splits, renderer, plan, resume, allow_changes, display)
    batches, packing = plan.batches, plan.packing
    sizes = splits["train"].tokens.sizes()
    distinct, twice = sizes.tokens, sizes.tokens_repeated
    derived: dict[str, Any] = {
        "steps": len(batches.steps),
        "steps_per_epoch": batches.steps_per_epoch,
        "groups_per_step": min(recipe.optim.global_batch_size, len(sizes.prefixes)),
        "processes": processes,
        "microbatches_per_step": batches.accumulation,
        "strategy": str(plan.sharding),
        "packing": packing,
        "dtype": recipe.model.dtype,
        "compile": recipe.model.compile,
        "tokens_per_epoch": distinct if packing == "shared_prompt" else twice,
        "tokens_saved_by_sharing": twice - distinct if packing == "shared_prompt" else 0,
        **count_parameters(start_config(recipe), recipe.lora),
    }
    first = _first_group(splits["train"], renderer)
    report = data_report(data, splits)
    memory, notes = _memory(plan), [*dict.fromkeys([*plan.notes, *rehearsed])]
    answer = {"derived": derived, "memory": memory, "data": report.as_json(), "first_group": first, "notes": notes}
    if as_json:
        print_json(answer)
    else:
        _show(answer, report)
    plan.memory.require_fit()


def _show(answer: dict[str, Any], report: "DataReport") -> None:
    from rmtrain.reporting.data_report import report_tables
    from rmtrain.reporting.table import to_terminal
    from rmtrain.reporting.text import shortened

    derived, memory, first = (answer[key] for key in ("derived", "memory", "first_group"))
    console = Console(highlight=False, markup=False)
    width = max(map(len, derived))
    for key, value in derived.items():
        shown = str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else value
        console.print(f"{key.replace('_', ' '):<{width}}  {shown}")
    console.print(to_terminal(_memory_table(memory), *report_tables(report)))
    for note in [*answer["notes"], *report.notes]:
        console.print(f"note: {note}")
    console.print(f"\nfirst group: {first['id']}, preferences {first['preferences']}")
    for index, sequence in enumerate(first["sequences"]):
        text = "".join(c if c.isprintable() or c == "\n" else "�" for c in sequence["text"])
        console.print(f"completion {index} ({sequence['tokens']} tokens): {shortened(text, 600)}")


def _memory(plan: "RunPlan") -> dict[str, Any]:
    """The memory that the run takes under each strategy, and the strategy that it uses."""
    memory, too_large = plan.memory, None
    try:
        memory.require_fit()
    except InputError as error:
        too_large = str(error)
    return {
        "strategy": plan.sharding.strategy,
        "offload": plan.sharding.offload,
        "reason": plan.reason,
        "free_bytes": memory.free,
        "too_large": too_large,
        "tokens": memory.load.largest,
        "layouts": [{**sharding._asdict(), **estimate._asdict()} for sharding, estimate in memory.estimates()],
    }


def _memory_table(memory: dict[str, Any]) -> "Table":
    from rmtrain.reporting.table import Table

    heads = {"parameters": "params", "gradients": "grads", "optimizer": "optim.", "buffers": "buffers"}
    if memory["free_bytes"] is None:
        heads["process"] = "Python"
    heads |= {"activations": "activ.", "peak": "peak", "host": "host"}
    rows = []
    for row in memory["layouts"]:
        taken = (row["strategy"], row["offload"]) == (memory["strategy"], memory["offload"])
        values = ["–" if row[name] is None else f"{row[name] / 2**30:.2f}" for name in heads]
        rows.append((f"{row['strategy']}{' ←' if taken else ''}", row["offload"], *values))
    gpu = memory["free_bytes"]
    free = f"{gpu / 2**30:.1f} GiB free on a GPU" if gpu is not None else "no GPU here"
    title = f"GiB a process, predicted, at {memory['tokens']:,} tokens a micro-batch; {free}"
    chosen = f"strategy: {memory['strategy']}, {memory['reason']}"
    return Table(("strategy", "offload", *heads.values()), rows, title=title, texts=2, notes=[chosen])


def _first_group(split: "ReadySplit", renderer: "Renderer") -> dict[str, Any]:
    group = split.tokens.group(0)
    sequences = [[*group.prefix.tolist(), *suffix.tolist()] for suffix in group.spread(group.suffixes)]
    return {
        "id": group.id,
        "preferences": [[p.better, p.worse] for p in group.preferences],
        "shared_prefix_tokens": len(group.prefix),
        "sequences": [{"tokens": len(ids), "text": renderer.tokenizer.decode(ids), "ids": ids} for ids in sequences],
    }
