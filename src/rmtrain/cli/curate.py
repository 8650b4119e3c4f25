"""`rmtrain curate`: reward models judge training pairs, and the pairs that no rule rejects become a new source."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import require_distinct
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_parts, print_tables
from rmtrain.errors import InputError, command_line
from rmtrain.json_values import JsonObject
from rmtrain.runs import locate_model

if TYPE_CHECKING:
    from rmtrain.data.judged import Judge, Judged, Rule
    from rmtrain.data.split_data import SplitData
    from rmtrain.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges the preferences, and what becomes of those that the rules reject."""

    judge: Annotated[
        list[str] | None, Option(metavar="CKPT", help="Reward model: run folder, folder or hub id; may be repeated.")
    ] = None
    folds: Annotated[
        int | None,
        Option(min=2, max=50, help="Train a model on each of so many folds; it judges the rows of the other folds."),
    ] = None
    rule: Annotated[
        list[str] | None,
        Option(help="Reject by majority (the default), hardest=SHARE, easiest=SHARE or refused; may be repeated."),
    ] = None
    mark: Annotated[
        bool, Option("--mark", help="Keep every row, and write the verdicts of the rules into its `verdicts` field.")
    ] = False
    weight: Annotated[
        float | None, Option(help="Keep every row, and give rejected preferences this weight, above 0 and below 1.")
    ] = None

    def check(self) -> None:
        """Refuse no judges or two kinds of them, and a weight out of range."""
        if bool(self.judge) == bool(self.folds):
            raise InputError(
                "curate takes either --judge or --folds", "name reward models with --judge, or let --folds train them"
            )
        if self.weight is not None and not 0 < self.weight < 1:
            raise InputError(
                f"--weight {self.weight:g}: must be above 0 and below 1", "without it, rejected rows are dropped"
            )


@options.grouped
def curate(
    *,
    recipe: options.Recipe,
    output: Annotated[Path, Option(metavar="OUT.jsonl", help="The new source.")],
    overrides: options.Overrides = None,
    judging: Judging,
    examples: Annotated[int, Option(min=0, help="Examples to show per cause.")] = 2,
    show: Annotated[str | None, Option(metavar="CAUSE", help="Only show examples of this cause.")] = None,
    json: options.Json = False,
) -> None:
    """Judge the training pairs of a recipe by reward models, and write the pairs that no rule rejects as a new source.

    An interrupted command continues when it is run again.

    [dim]rmtrain curate my.yaml --judge org/reward-model --judge runs/mine-20260101-120000-ab12 --output kept.jsonl[/]
    [dim]rmtrain curate my.yaml --folds 5 --rule majority --rule easiest=0.1 --output kept.jsonl[/]
    [dim]rmtrain curate my.yaml --folds 5 --weight 0.25 --output weighted.jsonl[/]
    """
    judging.check()
    require_distinct(judges := judging.judge or [], [locate_model(ckpt)[0] for ckpt in judges])
    options.check_output(output, overwrite=None if show is None else True, formats=[".jsonl"])
    if processes.joined():
        raise InputError("curate starts its own processes", "run it without a launcher")
    from rmtrain.data.curated_source import write_curated
    from rmtrain.data.examples import matching
    from rmtrain.data.judged import Judged, Rule
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting.curation import causes_of, curation_tables, example_rows
    from rmtrain.reporting.examples import to_terminal

    rules = [Rule.of(text) for text in judging.rule or ["majority"]]
    loaded = load_recipe(recipe, overrides or []).recipe
    with TerminalDisplay() as display, processes.alone(output):
        split = _training_split(loaded, display)
        judged = Judged.by(rules, split.groups, _judge(loaded, split, output, judging, display))
        causes = causes_of(judged)
        shown = [*example_rows(judged, split.place, matching(show, causes) if show else causes, examples)]
        result = _record(rules, judged, split, judging)
        if not show:
            write_curated(output, judged.source(judging.mark, judging.weight), result)
    if json:
        print_json(
            [example.as_json() for example in shown] if show else {"output": str(output), **result}, ascii_only=not show
        )
        return
    if not show:
        print_tables(curation_tables(result))
    print_parts([to_terminal(shown)])
    if show:
        return
    lines = [f"written: {output}"]
    if judging.weight is not None:
        keys = (f"data.source={{train: {output}}}", "data.preference_weights=weights")
        lines.append(f"to train with its weights: {command_line('train', recipe, *keys)}")
    print_tables([], *lines)


def _training_split(recipe: "Recipe", display: TerminalDisplay) -> "SplitData":
    """The curated training split, without added completions and without ties, whose labels can't be wrong."""
    from rmtrain.data.load import load_data
    from rmtrain.data.types import has_votes, has_weights
    from rmtrain.recipe.data_schema import AugmentSection

    section = recipe.data.model_copy(update={"augment": AugmentSection(), "tied": "drop", "gap_scale": None})
    data = load_data(section, recipe.run.seed, ["train"])
    for note in data.notes:
        display.note(f"note: {note}")
    split = data.splits["train"]
    if has_votes(split.groups):
        display.note("note: the new source holds the shares of raters; set data.votes=votes to train on them")
    if has_weights(split.groups):
        display.note("note: the new source holds the weights; set data.preference_weights=weights to train with them")
    gaps = sum(p.gap is not None for group in split.groups if group.scores is None for p in group.preferences)
    if gaps:
        display.note(
            f"note: {gaps} preferences have a score gap but no scores, and the new source does not keep these gaps"
        )
    return split


def _judge(
    recipe: "Recipe", split: "SplitData", output: Path, judging: Judging, display: TerminalDisplay
) -> "list[Judge]":
    """The rewards of the judges: a named judge scores every row, a fold's model scores the rows of the other folds."""
    from rmtrain.cli.judges import Judges
    from rmtrain.data.judged import folds_of

    folder = output.with_name(f"{output.name}.judges")
    folder.mkdir(exist_ok=True)
    judges, groups = Judges(folder, split.groups, display), split.groups
    if not (folds := judging.folds):
        return [judges.judge(ckpt, groups) for ckpt in judging.judge or ()]
    fold_of = folds_of(groups, folds, recipe.run.seed)
    if len({*fold_of}) < folds:
        raise InputError(f"--folds {folds}: the data has only {len({*fold_of})} prompts", "ask for fewer")
    others = [[group for group, own in zip(groups, fold_of, strict=True) if own != fold] for fold in range(folds)]
    return [judges.judge(*judged) for judged in zip(judges.train(recipe, fold_of), others, strict=True)]


def _record(rules: "Sequence[Rule]", judged: "Judged", split: "SplitData", judging: Judging) -> JsonObject:
    """The record beside the rows: what was judged, by which models and rules, and with which result."""
    from rmtrain.data.judged import histogram

    return {
        "rules": [rule.cause for rule in rules],
        "marked": judging.mark or judging.weight is not None,
        "weight": judging.weight,
        "judges": [judge.figures(judged.groups) for judge in judged.judges],
        "rows": asdict(judged.rows()),
        "preferences": asdict(judged.preferences()),
        "histogram": histogram(judged),
        "data": split.origin,
    }
