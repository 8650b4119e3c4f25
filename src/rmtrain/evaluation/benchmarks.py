"""The benchmarks: where their rows are, how a row becomes a preference group, and how scored rows become a result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmtrain.data.rows import Row
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.evaluation import bench_results
from rmtrain.evaluation.bench_rows import judgebench_group, rewardbench1_group, rewardbench2_group, rm_bench_group
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics import rewardbench, rewardbench2


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: str
    hub_id: str
    split: str
    to_group: Callable[[Row], PreferenceGroup]
    # of scored rows, or of subsets; and in RewardBench 1 those of the prior sets
    figures: Callable[..., bench_results.Result]
    of_subsets: Callable[..., bench_results.Result]
    counts: Mapping[str, int] = field(default_factory=dict)  # rows of each subset, where they are published
    rows: tuple[int, ...] = ()  # of its splits, where they are not
    prior_counts: Mapping[str, int] = field(default_factory=dict)  # rows of each prior set, a split of that name
    needs_rewards: bool = False  # margins between two completions are not enough


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="rewardbench-1",
            hub_id="allenai/reward-bench",
            split="filtered",
            to_group=rewardbench1_group,
            figures=bench_results.rewardbench1_figures,
            of_subsets=bench_results.rewardbench1_of_subsets,
            counts=rewardbench.COUNTS,
            prior_counts=rewardbench.PRIOR_COUNTS,
        ),
        Benchmark(
            name="rewardbench-2",
            hub_id="allenai/reward-bench-2",
            split="test",
            to_group=rewardbench2_group,
            figures=bench_results.rewardbench2_figures,
            of_subsets=bench_results.rewardbench2_of_subsets,
            counts=rewardbench2.COUNTS,
            needs_rewards=True,
        ),
        Benchmark(
            name="rm-bench",
            hub_id="THU-KEG/RM-Bench",
            split="train",
            to_group=rm_bench_group,
            figures=bench_results.rm_bench_figures,
            of_subsets=bench_results.rm_bench_of_subsets,
            rows=(1327,),
            needs_rewards=True,
        ),
        Benchmark(
            name="judgebench",
            hub_id="ScalerLab/JudgeBench",
            split="gpt",
            to_group=judgebench_group,
            figures=bench_results.judgebench_figures,
            of_subsets=bench_results.judgebench_of_subsets,
            rows=(350, 270),  # of the splits gpt and claude
        ),
    )
}


def benchmark_groups(
    benchmark: Benchmark,
    rows: Sequence[Row],
    subset: str | None = None,
    where: Callable[[int], str] = lambda index: f"row {index + 1}",
) -> list[PreferenceGroup]:
    """Rows of a benchmark as preference groups, all of them, in order; ids are as published, which may repeat.

    Args:
        benchmark: whose rows they are.
        rows: as the source holds them.
        subset: takes the place of the rows' own `subset`; for splits of the prior sets.
        where: the place of a row, for messages.

    Raises:
        DataError: a row lacks something or has the wrong type, with its place.
    """
    groups: list[PreferenceGroup] = []
    for index, row in enumerate(rows):
        try:
            groups.append(benchmark.to_group(row if subset is None else {**row, "subset": subset}))
        except ValueError as error:
            raise DataError(
                f"{where(index)}: {error}", f"{benchmark.name} rows have the columns of {benchmark.hub_id}"
            ) from error
    return groups


def benchmark_result(
    name: str,
    rows: Sequence[ScoredRow],
    prior_rows: Sequence[ScoredRow] = (),
    *,
    ckpt: str | None,
    path: str | None,
) -> dict[str, Any]:
    """The result of a benchmark, as `rewardbench --json` gives it.

    The accuracy of a subset counts a tie as wrong, as the benchmarks do; `accuracy_half` counts it 1/2. Intervals are
    95 %, clustered by prompt within subsets. A section that lacks a subset is None, and so is what depends on it.

    Args:
        name: of the benchmark.
        rows: scored rows of the benchmark, whose `source` is the subset.
        prior_rows: scored rows of the prior sets of rewardbench-1, whose `source` is the set.
        ckpt: what scored them.
        path: of the rows file.
    """
    figures, sizes = BENCHMARKS[name].figures(rows, *([prior_rows] if prior_rows else [])), BENCHMARKS[name].rows
    if sizes and figures["n"] not in sizes:
        figures["incomplete_subsets"] = {"all rows": {"n": figures["n"], "expected": sizes[0]}}
    sums = {key: sum(getattr(row, key) for row in [*rows, *prior_rows]) for key in ("truncated", "identical")}
    return {"benchmark": name, "ckpt": ckpt, **figures, **sums, "rows": path}
