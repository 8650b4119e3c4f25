"""The data section of the recipe: where the preferences come from and which are used."""

from typing import Annotated, Literal

from pydantic import Field

from rmtrain.recipe.section import MOST, NonEmpty, PositiveInt, Section, Shards, SplitName


class HoldoutSection(Section):
    """Splits drawn from the training split, by prompt, if the source lacks them."""

    validation: Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Rows (an integer) or share (a fraction) held out for validation."""
    test: Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Rows (an integer) or share (a fraction) held out for the test."""
    seed: Annotated[int, Field(ge=-(2**62), lt=2**62)] = 0
    """Seed of the draw; it depends on the prompts alone, not on the order of the rows."""


class DataSection(Section):
    """Where the preferences come from and which are used."""

    source: NonEmpty | Shards | Annotated[dict[NonEmpty, NonEmpty | Shards], Field(min_length=1)]
    """Hub dataset id (`@revision`, `:config`); local .jsonl, .jsonl.gz, .json, .parquet or .csv file; a pattern
    (`shards/*.parquet`), folder or list of such files; folder that `save_to_disk` wrote; `demo`; or a mapping of split
    to such a source."""
    splits: dict[SplitName, NonEmpty] = {"train": "train", "validation": "validation", "test": "test"}
    """Name in the source of each split that the run uses."""
    holdout: HoldoutSection = HoldoutSection()
    """Splits drawn from the training split if the source lacks them."""
    row_schema: Literal[
        "auto",
        "ultrafeedback",
        "completions",
        "rewardbench",
        "pair",
        "hh_rlhf",
        "alpaca",
        "sharegpt",
        "swift",
        "ultrainteract",
        "arena",
        "helpsteer",
        "pku_saferlhf",
        "shp",
        "stack_exchange",
        "nectar",
        "summarize",
        "tokens",
    ] = "auto"
    """Row schema; auto detects it from the columns."""
    columns: dict[NonEmpty, NonEmpty] = {}
    """Renames: the schema's column name to the source's, such as `chosen: good_answer`."""
    answers: list[NonEmpty] = []
    """For rows of no known schema: the columns of the answers, or the one column with a list of them (`replies`, or
    `replies.text` for that key of its entries). `label` or `scores` says which answer is better."""
    label: NonEmpty | None = None
    """The column that says which answer is better."""
    better: dict[NonEmpty, Annotated[int, Field(ge=0, le=MOST)]] = {}
    """The better answer for each value of the label, counted from 0, such as `{model_a: 0, model_b: 1}`; `negative` and
    `positive` match numbers by sign. By default the value is the answer's number."""
    ties: list[str | int | float | bool] = []
    """Values of the label that mean a tie; with `negative` and `positive`, 0 does too."""
    scores: list[NonEmpty] = []
    """Columns of the answers' scores, or one list of them, as in `answers`; higher is better."""
    preferences: Literal["all", "best_vs_rest", "best_vs_worst", "as_given"] = "all"
    """Which preferences to make of a scored group; as_given takes only those stated by the row."""
    score: Literal["fine_grained", "overall"] = "fine_grained"
    """Raw UltraFeedback: rank by the mean of the four aspect ratings, or by the overall score."""
    min_gap: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    """Smallest score difference that makes a preference; a difference of 0 is always a tie."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose prompt and completions were seen before in the split."""
    contradictions: Literal["drop", "keep"] = "drop"
    """Training pairs that another row states the other way round; drop removes all of them."""
    leaks: Literal["drop", "keep"] = "drop"
    """Training rows whose prompt is also in validation or test: dropped or kept, and always reported."""
    max_length: Annotated[int, Field(ge=8, le=2**24)] = 2048
    """Tokens of prompt and one completion together."""
    over_length: Literal["truncate_prompt", "truncate_completion", "drop", "error"] = "truncate_prompt"
    """What training does with a longer sequence. Evaluation never drops: it truncates the prompt instead."""
    limit: dict[SplitName, PositiveInt] = {}
    """Maximum groups of a split, drawn with the run's seed."""
    demo_groups: dict[SplitName, Annotated[int, Field(ge=1, le=10**6)]] = {"train": 600, "validation": 100, "test": 200}
    """Rows of the built-in `demo` source to use, by split: at most 4000 for train, 2000 for each other split."""


# fields of DataSection that describe the rows of a source
MAPPING = ("row_schema", "columns", "answers", "label", "better", "ties", "scores")
