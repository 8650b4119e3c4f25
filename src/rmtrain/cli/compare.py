"""`rmtrain compare`: two models on the same rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import DEFAULTS, choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_parts
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.evaluation.compare import Plan, Side


def _of_side(option: str, side: str, text: str) -> Any:
    return Option(f"--{option}-{side.lower()}", help=f"Model {side}: {text}")


_PROMPT, _LABEL = "the prompt's name, or a .jinja chat template.", "name or number of the reward's label."
_REFERENCE = "score it as a policy, with this reference model."
_FREE = "score it as a policy by its log-probabilities alone."


@dataclass(frozen=True, kw_only=True)
class Sides:
    """How each of the two models gives rewards."""

    prompt_a: Annotated[str | None, _of_side("prompt", "A", _PROMPT)] = None
    prompt_b: Annotated[str | None, _of_side("prompt", "B", _PROMPT)] = None
    label_a: Annotated[str | None, _of_side("label", "A", _LABEL)] = None
    label_b: Annotated[str | None, _of_side("label", "B", _LABEL)] = None
    reference_a: Annotated[str | None, _of_side("reference", "A", _REFERENCE)] = None
    reference_b: Annotated[str | None, _of_side("reference", "B", _REFERENCE)] = None
    reference_free_a: Annotated[options.PolicyReading | None, _of_side("reference-free", "A", _FREE)] = None
    reference_free_b: Annotated[options.PolicyReading | None, _of_side("reference-free", "B", _FREE)] = None

    def given(self, letter: str) -> dict[str, str]:
        """The options given for model a or b, by their names in `ScoringOptions`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {name[:-2]: value for name, value in given.items() if name.endswith(f"_{letter}")}


@options.grouped
def compare(
    *,
    a: Annotated[
        str,
        Argument(
            metavar="A", help="A file of scored rows, a result .json, gap.json:MODEL, RUN[:split], or a checkpoint."
        ),
    ],
    b: Annotated[str, Argument(metavar="B", help="The other model, in the same forms.")],
    data: Annotated[
        str | None, Option(metavar="SOURCE", help="Rows to compare on; default: those already scored with both.")
    ] = None,
    split: Annotated[str | None, Option(help="Split of --data or --benchmark, or of both runs.")] = None,
    benchmark: Annotated[
        options.BenchmarkName | None, Option(help="Compare on this benchmark, with the rows of --data if given.")
    ] = None,
    sides: Sides,
    reading: options.Reading,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    work: options.Work,
    json: options.Json = False,
) -> None:
    """Compare two models on the same rows: difference, paired interval, exact test, smallest detectable difference.

    A checkpoint is scored first if it has no result on these rows, or if its weights have changed since.

    [dim]rmtrain compare runs/a-20260101-120000-ab12 runs/b-20260102-120000-cd34[/]
    [dim]rmtrain compare runs/a-20260101-120000-ab12 openbmb/UltraRM-13b --benchmark rewardbench-1[/]
    [dim]rmtrain compare openbmb/UltraRM-13b openbmb/UltraRM-13b --prompt-b ultrarm-fastchat --data pairs.jsonl[/]
    """
    from rmtrain.evaluation.compare import RowsRequest, plan
    from rmtrain.evaluation.differences import compare_files

    mapping = reading.mapping()
    if mapping and (data is None or benchmark is not None):
        raise InputError("--columns and --row-schema apply to the rows of --data", "name the rows with --data")
    with TerminalDisplay() as display:
        both = ScoringOptions(max_length=max_length, dtype=dtype)
        verify = not work.no_verify
        compared = [_side(x, text, sides.given(x), both, verify, display) for x, text in (("a", a), ("b", b))]
        if both != DEFAULTS and not any(side.model for side in compared):
            raise InputError("A and B both name rows: --max-length and --dtype are for checkpoints", "leave them out")
        planned = plan(compared, RowsRequest(data, split, benchmark, mapping), display.note_once)
        if planned.missing:
            processes.spread(work.num_processes)
            _score(planned, work.tokens_per_batch, display)
    if not processes.is_main_process():
        return
    rows = [str(path) for path in planned.paths]
    result = {**compare_files(planned.paths).to_json(), "rows": rows}
    if json:
        print_json(result)
        return
    from rmtrain.reporting.table import key_values, to_terminal
    from rmtrain.reporting.tables import comparison_tables

    names = key_values(dict(zip("AB", rows, strict=True)))
    print_parts([names, to_terminal(*comparison_tables(result))])


def _side(
    letter: str, text: str, own: dict[str, Any], both: ScoringOptions, verify: bool, display: TerminalDisplay
) -> "Side":
    """Find what A or B names: scored rows, or a checkpoint with the rows that it scores by its own and the shared
    options."""
    from rmtrain.evaluation.compare import Side, rows_named

    side = rows_named(text)
    if side is None:
        ref = choose(text, Path("runs"), display, replace(both, **own), verify)
        return Side(model=ref, scored=ref.scored)
    if own:
        given = options.names(dict.fromkeys((f"{name}_{letter}" for name in own), True))
        raise InputError(f"{text} names rows that are already scored, so it takes no {given}", "name the checkpoint")
    return side


def _score(planned: "Plan", tokens_per_batch: int | None, display: TerminalDisplay) -> None:
    """Score the models whose rows are missing, one after the other."""
    from rmtrain.evaluation.splits import score_target

    target = planned.target
    assert target is not None
    needs_rewards = target.benchmark is not None and benchmark_named(target.benchmark).needs_rewards
    for ref, path in planned.missing:
        display.note(f"scoring {ref.request.where} on {target.name}")
        scorer = load(ref, display, str(target.benchmark) if needs_rewards else "")
        score_target(scorer, target, path, tokens_per_batch or scorer.info.tokens_per_batch, display)
