"""The registry of benchmarks: a new one is a module in this folder, and a line here."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from rmtrain.errors import DataError

if TYPE_CHECKING:
    from rmtrain.data.benchmarks.definition import Benchmark

BENCHMARKS = {  # name on the command line and in results → module with a BENCHMARK, imported on demand
    "rewardbench-1": "rmtrain.data.benchmarks.rewardbench1",
    "rewardbench-2": "rmtrain.data.benchmarks.rewardbench2",
    "rm-bench": "rmtrain.data.benchmarks.rm_bench",
    "judgebench": "rmtrain.data.benchmarks.judgebench",
}


@cache
def benchmark_named(name: str) -> "Benchmark":
    """The benchmark registered under a name.

    Raises:
        DataError: this version of rmtrain has no such benchmark.
    """
    if name not in BENCHMARKS:
        raise DataError(f"unknown benchmark {name!r}", f"known benchmarks: {', '.join(BENCHMARKS)}")
    benchmark: Benchmark = import_module(BENCHMARKS[name]).BENCHMARK
    return benchmark
