"""The rows of `rmtrain gap`: the same groups, scored by a policy, its reference and reward models."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer
from rmtrain.data.split_data import SplitData
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.errors import DataError
from rmtrain.evaluation.alignment_gap import GapRows, measure_gap
from rmtrain.evaluation.compare import ModelRef
from rmtrain.evaluation.rater_shares import AlphaSource, find_alpha
from rmtrain.evaluation.results import ScoredRow, write_rows
from rmtrain.evaluation.rows_files import ROWS_SUFFIX
from rmtrain.evaluation.splits import score_once, write_beside
from rmtrain.files import write_json, writing
from rmtrain.json_values import JsonObject
from rmtrain.model.devices import process_state
from rmtrain.model.weights import fingerprint_of, fingerprint_read
from rmtrain.scoring.implicit import PolicyScorer
from rmtrain.scoring.kinds import open_scorer
from rmtrain.scoring.scorer import Scorer, ScorerInfo, ScorerRequest

# the text of the paper's tables: BOS, then prompt + " " + completion, without chat template and end token
_PLAIN_TEXT = "{{ bos_token }}{% for m in messages %}{% if not loop.first %} {% endif %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class ScoredGroups:
    """Rows of every model on the groups that all models could score."""

    groups: list[PreferenceGroup]
    rows: GapRows  # every model's, in the order of the groups
    refused: int  # groups left out because a chat template refuses them
    infos: dict[str, ScorerInfo]  # what scored the rows, by name
    paths: dict[str, str]  # the rows files by name


@dataclass(frozen=True)
class GapTask:
    """What is measured, and on which preferences."""

    split: SplitData
    source_rows: Sequence[Mapping[str, Any]]  # the rows that they were made of, for the votes of raters
    alpha: AlphaSource  # where the share of raters comes from
    betas: tuple[float, ...]  # KL coefficients of the ideal policies
    dpo_beta: float  # the beta that the policy was trained with
    name: str  # names the policy and the data in the results of the reward models
    rows_folder: Path  # where every model's rows of this data are
    gold: str | None = None  # the reward model whose rewards are the graded scores; None: those of the rows
    tokens_per_batch: int | None = None  # maximum tokens per forward pass; None leaves it to each scorer


def evaluate_gap(
    policies: Mapping[str, PolicyScorer],
    reward_models: Mapping[str, ModelRef],
    task: GapTask,
    folder: Path,
    display: Display,
) -> JsonObject:
    """Score the groups by every model and measure the gap, as in `gap --json`; writes `gap.json` and rows files.

    The results folder of each reward model, by the name that the user gave it, gets the result and its rows too.

    Raises:
        InputError: the rows lack the values for alpha.
        DataError: no group could be scored by all models.
    """
    split = task.split
    rows = {group.id: task.source_rows[place] for group, place in zip(split.groups, split.rows, strict=True)}
    if task.alpha.kind in ("votes", "scores"):  # rows that lack them are refused before any model scores
        find_alpha(task.alpha, split.groups, rows, {})
    scored = score_all(policies, reward_models, task, display)
    alpha = find_alpha(task.alpha, scored.groups, rows, scored.rows.reward_models)
    scores: list[Sequence[float] | None] = [group.scores for group in scored.groups]
    if task.gold is not None:
        scores = [row.rewards for row in scored.rows.reward_models[task.gold]]
    figures = measure_gap(scored.rows, alpha, task.betas, task.dpo_beta, scores, task.gold)
    result = {
        **figures.to_json(),
        "refused": scored.refused,
        "models": {
            name: {"where": info.where, **info.record(), "rendering": info.rendering}
            for name, info in scored.infos.items()
        },
        "data": split.origin,
        "rows": scored.paths,
    }
    if process_state().is_main_process:
        _write(folder / "gap.json", result)
        for name, ref in reward_models.items():
            path = ref.results / "gap" / f"{task.name}{ROWS_SUFFIX}"
            own = {"ckpt": name, **scored.infos[name].record(), "rows": str(path)}
            _write(path.with_name(f"{task.name}.json"), result | own)
            write_rows(path, scored.rows.reward_models[name])
    return result


def _write(path: Path, result: Mapping[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def open_policies(request: ScorerRequest, plain_text: bool) -> dict[str, PolicyScorer]:
    """Scorers of summed log-probabilities: `policy`, and `reference` if the options name one.

    `plain_text` scores prompt + " " + completion after BOS, without a template, as the paper does.

    Raises:
        CheckpointError: one of them is not a language model, or can't be downloaded.
        InputError: they turn the same text into different tokens.
    """
    options = request.options
    if options.reference is None:
        options = replace(options, reference_free="sum")
    both = PolicyScorer.open(replace(request, options=options))
    assert both is not None  # the options make it a policy
    renderer = _plain_text(both.renderer) if plain_text else both.renderer
    alone = {}
    for name, files, dtype in zip(("policy", "reference"), both.models, both.dtypes, strict=False):
        weights = fingerprint_of(files.folder)
        info = replace(
            both.info,
            where=files.name,
            fingerprint=fingerprint_read(weights, "sum", dtype, both.info.max_length, str(renderer.contract())),
            weights=weights,
            dtype=dtype,
            rendering=renderer.contract(),
            renderer=renderer,
            details={"log_probabilities": "sum", "plain_text": plain_text},
        )
        alone[name] = replace(both, info=info, renderer=renderer, models=(files,), dtypes=(dtype,))
    return alone


def _plain_text(renderer: Renderer) -> Renderer:
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = _PLAIN_TEXT
    return Renderer.for_tokenizer(tokenizer, append_eos=False)


def score_all(
    policies: Mapping[str, PolicyScorer], reward_models: Mapping[str, ModelRef], task: GapTask, display: Display
) -> ScoredGroups:
    """Score the groups of a split by every model, one model in memory at a time, and write their rows files.

    An existing rows file of the same data and scorer is reused, even from the gap of another policy. An interrupted
    scoring continues.

    Raises:
        DataError: no group could be scored by all models.
        RunFailedError, WriteError: as `score_rows`.
    """
    split, scored = task.split, dict[str, dict[str, ScoredRow]]()
    infos, paths = dict[str, ScorerInfo](), dict[str, str]()
    for name, scorer in _opened(policies, reward_models, display):
        if name == task.gold:
            scorer.info.require_rewards("the gold of a gap")
        scored_once = score_once(scorer, scorer.info.where, split, task.tokens_per_batch, task.rows_folder, display)
        if process_state().is_main_process:
            write_beside(scorer, scored_once.path, name, split.origin)
        scored[name] = {row.id: row for row in scored_once.rows}
        infos[name], paths[name] = scorer.info, str(scored_once.path)
    groups = [group for group in split.groups if all(group.id in rows for rows in scored.values())]
    if not groups:
        raise DataError(
            f"{split.source}: no row {'can be rendered by all models' if split.groups else 'has a preference'}"
        )
    in_order = {name: [rows[group.id] for group in groups] for name, rows in scored.items()}
    rewards = {name: in_order[name] for name in reward_models}
    rows_of_all = GapRows(in_order["policy"], in_order.get("reference"), rewards)
    return ScoredGroups(groups, rows_of_all, len(split.groups) - len(groups), infos, paths)


def _opened(
    policies: Mapping[str, PolicyScorer], reward_models: Mapping[str, ModelRef], display: Display
) -> Iterator[tuple[str, Scorer]]:
    """Every scorer by name; a reward model is loaded only when it is needed."""
    yield from policies.items()
    for name, ref in reward_models.items():
        scorer = open_scorer(ref.request)
        for note in scorer.info.notes:
            display.note(note)
        yield name, scorer
