"""The data section of the recipe: where the preferences come from and which are used."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from rmtrain.recipe.section import FOLDER_NAME_PATTERN, MOST, NonEmpty, PositiveInt, Section, Shards, SplitName

RowSchemaName = Literal[
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
]
Better = dict[NonEmpty, Annotated[int, Field(ge=0, le=MOST)]]
Ties = list[str | int | float | bool]
Pairs = Literal["all", "best_vs_rest", "best_vs_worst", "as_given"]
Ratings = Literal["fine_grained", "overall"]
Tied = Literal["drop", "half"]
OverLength = Literal["truncate_prompt", "truncate_completion", "drop", "error"]
GapScale = Annotated[float, Field(gt=0, le=1e6)]
Gap = Annotated[float, Field(ge=0, le=1e12)]
# fields of DataSection: those that describe the rows of a source, that evaluation ignores, and that an entry may set
MAPPING = ("row_schema", "columns", "answers", "label", "better", "ties", "scores", "votes")
TRAINING_ONLY = ("min_gap", "tied", "gap_scale", "preference_weights")
READING = (*MAPPING, "preferences", "score", *TRAINING_ONLY)

EntryName = Annotated[str, StringConstraints(pattern=FOLDER_NAME_PATTERN)]


class HoldoutSection(Section):
    """Splits drawn from the training split, by prompt, if the source lacks them."""

    validation: Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Rows (an integer) or share (a fraction) held out for validation."""
    test: Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Rows (an integer) or share (a fraction) held out for the test."""
    seed: Annotated[int, Field(ge=-(2**62), lt=2**62)] = 0
    """Seed of the draw; it depends on the prompts alone, not on the order of the rows."""


class EntrySection(Section):
    """One source of a mixture. A key that is left out is that of the data section."""

    source: NonEmpty | Shards
    """Where its rows are, as in data.source."""
    name: EntryName | None = None
    """What figures call it; by default the last part of the source's name."""
    split: NonEmpty | None = None
    """The source's own name of the split; by default as in data.splits."""
    row_schema: RowSchemaName | None = None
    """Row schema."""
    columns: dict[NonEmpty, NonEmpty] | None = None
    """Renames of columns."""
    answers: list[NonEmpty] | None = None
    """Columns of the answers."""
    label: NonEmpty | None = None
    """The column that says which answer is better."""
    better: Better | None = None
    """The better answer for each value of the label."""
    ties: Ties | None = None
    """Values of the label that mean a tie."""
    votes: NonEmpty | None = None
    """The column of the raters' votes, or of the share of them."""
    scores: list[NonEmpty] | None = None
    """Columns of the answers' scores."""
    preferences: Pairs | None = None
    """Which preferences to make of a scored group."""
    score: Ratings | None = None
    """Raw UltraFeedback: which rating ranks."""
    min_gap: Gap | None = None
    """Smallest score difference that makes a preference."""
    tied: Tied | None = None
    """What becomes of ties in training."""
    gap_scale: GapScale | None = None
    """The scale that turns a score gap into a probability."""
    preference_weights: NonEmpty | None = None
    """The column of the weights of its preferences in the loss."""
    limit: PositiveInt | None = None
    """Maximum groups of this entry, drawn with the run's seed."""
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Its share of the training groups, relative to the other entries' weights; all entries have one, or none has."""
    tags: list[NonEmpty] = []
    """Words that say what it is for; reports show them."""

    @model_serializer(mode="wrap")
    def _only_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omits unset keys, so that a recipe is written as it was read."""
        return {key: value for key, value in dump(self).items() if value is not None and (key != "tags" or value)}

    @property
    def title(self) -> str:
        """Its name, or the last part of the source's: `b` of `a/b@main`, `my/b.jsonl` and `b/*.parquet`."""
        source = self.source if isinstance(self.source, str) else self.source[0]
        whole = [part for part in re.split(r"[/\\]", source) if part and not re.search(r"[*?\[]", part)] or ["source"]
        name = re.split(r"[@:]|\.(?:jsonl|json|parquet|csv)\b", whole[-1])[0]
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100].strip(".-_") or "source"


Entries = Annotated[list[EntrySection], Field(min_length=1)]


class AugmentSection(Section):
    """Completions that are added to training groups."""

    other_prompts: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training groups that get a good answer to another prompt as a worse completion (arXiv 2409.13156);
    0 is off."""


class DataSection(Section):
    """Where the preferences come from and which are used."""

    source: NonEmpty | Shards | Annotated[dict[NonEmpty, NonEmpty | Shards | Entries], Field(min_length=1)]
    """Hub dataset id (`@revision`, `:config`); local .jsonl, .jsonl.gz, .json, .parquet or .csv file; a pattern
    (`shards/*.parquet`), folder or list of such files; folder that `save_to_disk` wrote; `demo`; or a mapping of split
    to such a source, or to a mixture: a list of entries, each with `source` and keys of its own."""
    splits: dict[SplitName, NonEmpty] = {"train": "train", "validation": "validation", "test": "test"}
    """Name in the source of each split that the run uses."""
    holdout: HoldoutSection = HoldoutSection()
    """Splits drawn from the training split if the source lacks them."""
    row_schema: RowSchemaName = "auto"
    """Row schema; auto detects it from the columns."""
    columns: dict[NonEmpty, NonEmpty] = {}
    """Renames: the schema's column name to the source's, such as `chosen: good_answer`."""
    answers: list[NonEmpty] = []
    """For rows of no known schema: the columns of the answers, or the one column with a list of them (`replies`, or
    `replies.text` for that key of its entries). `label` or `scores` says which answer is better."""
    label: NonEmpty | None = None
    """The column that says which answer is better."""
    better: Better = {}
    """The better answer for each value of the label, counted from 0, such as `{model_a: 0, model_b: 1}`; `negative` and
    `positive` match numbers by sign. By default the value is the answer's number."""
    ties: Ties = []
    """Values of the label that mean a tie; with `negative` and `positive`, 0 does too."""
    votes: NonEmpty | None = None
    """The column that says how many raters prefer `chosen`, or the first of two answers: their share from 0 to 1, or a
    list of their votes (1 first, 2 second, 0 tie); for more answers, a share for each entry of `preferences`. The
    majority's answer is the better one, and its share is the preference's probability."""
    scores: list[NonEmpty] = []
    """Columns of the answers' scores, or one list of them, as in `answers`; higher is better."""
    preferences: Pairs = "all"
    """Which preferences to make of a scored group; as_given takes only those stated by the row."""
    score: Ratings = "fine_grained"
    """Raw UltraFeedback: rank by the mean of the four aspect ratings, or by the overall score."""
    min_gap: Gap = 0.0
    """Smallest score difference that makes a training preference; a difference of 0 is always a tie."""
    tied: Tied = "drop"
    """Training preferences between equal scores or votes: drop them, or (half) keep them with a probability of 0.5."""
    gap_scale: GapScale | None = None
    """Training takes sigmoid(gap_scale · score gap) as the probability that the higher score is right; null: always."""
    preference_weights: NonEmpty | None = None
    """The column that says how much a training row counts in the loss beside others: a number for the row, or a list
    with one for each entry of `preferences`, as `rmtrain curate --weight` writes. They are divided by their mean."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose prompt and completions were seen before in the split."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Drop training rows that are at least this similar to an earlier one, such as 0.8; null keeps them. Similarity is
    the Jaccard index of the runs of 3 words in prompt, preferred answers and other answers. Needs datasketch."""
    contradictions: Literal["drop", "first", "keep"] = "drop"
    """Training pairs that another row states the other way round: drop removes all of them; first keeps those of the
    mixture's entry that comes first."""
    leaks: Literal["drop", "keep"] = "drop"
    """Training rows whose prompt is also in validation or test: dropped or kept, and always reported."""
    decontaminate: list[NonEmpty] = []
    """Benchmarks whose texts no training row may contain: rewardbench-1, rewardbench-2, rm-bench, judgebench,
    prior-sets; `NAME=SOURCE` reads one from another place or revision; any other source of rows works too."""
    overlap_words: Annotated[int, Field(ge=5, le=100)] = 13
    """For decontaminate: how many words in a row a training row must not share with a benchmark."""
    augment: AugmentSection = AugmentSection()
    """Completions that are added to training groups."""
    max_length: Annotated[int, Field(ge=8, le=2**24)] = 2048
    """Maximum tokens of a sequence, which is a prompt with one completion."""
    over_length: OverLength = "truncate_prompt"
    """What training does with a longer sequence. Evaluation never drops: it truncates the prompt instead."""
    limit: dict[SplitName, PositiveInt] = {}
    """Maximum groups of a split, drawn with the run's seed."""
    repeat: bool = False
    """Where an entry of a weighted mixture has too few groups for its weight: repeat them (true), or use fewer groups
    of the other entries (false)."""
    demo_groups: dict[SplitName, Annotated[int, Field(ge=1, le=10**6)]] = {"train": 600, "validation": 100, "test": 200}
    """Rows of the built-in `demo` source to use, by split: at most 4000 for train, 2000 for each other split."""

    def entries(self, split: str) -> list[EntrySection]:
        """The entries of a mixture split; empty for a single source."""
        source = self.source.get(split) if isinstance(self.source, dict) else None
        return [entry for entry in source or () if isinstance(entry, EntrySection)]

    def of_entry(self, entry: EntrySection) -> "DataSection":
        """The data section for reading the rows of an entry."""
        keys = {key: value for key in READING if (value := getattr(entry, key)) is not None}
        return self.model_copy(update={"source": entry.source, **keys})
