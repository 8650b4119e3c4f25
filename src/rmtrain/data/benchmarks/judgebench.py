"""JudgeBench (arXiv 2410.12784): pairs of answers to hard questions, one of them right."""

from collections.abc import Collection, Mapping

from rmtrain.data.benchmarks.definition import Benchmark, Era, Sizes, single_subset_sections
from rmtrain.data.benchmarks.fields import right_and_wrong, text_in, user_turn
from rmtrain.data.types import PreferenceGroup, Row

SECTIONS = {  # section → how the `source` of its questions begins
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}


def read(row: Row) -> PreferenceGroup:
    """`pair_id`, `question`, `response_A`, `response_B`, `label` (A>B or B>A) and `source`, which gives the section."""
    source, label = text_in(row, "source"), text_in(row, "label")
    if label not in ("A>B", "B>A"):
        raise ValueError(f"label is {label!r}, expected A>B or B>A")
    right, wrong = text_in(row, f"response_{label[0]}"), text_in(row, f"response_{label[2]}")
    section = next((name for name, start in SECTIONS.items() if source.startswith(start)), source)
    return right_and_wrong(text_in(row, "pair_id"), user_turn(text_in(row, "question")), [right], [wrong], section)


def eras(sizes: Sizes, prior: Collection[str]) -> Mapping[str, Era]:
    """`current` is the accuracy over all rows, as the paper reports it; `section_mean` is the mean of the sections."""
    return {
        "current": Era({section: sizes.get(section, 0) for section in SECTIONS}),
        "section_mean": Era(dict.fromkeys(SECTIONS, 1)),
    }


BENCHMARK = Benchmark(
    name="judgebench",
    title="JudgeBench",
    hub_id="ScalerLab/JudgeBench",
    split="gpt",
    read=read,
    sections=single_subset_sections(*SECTIONS),
    eras=eras,
    split_sizes=(350, 270),  # of the splits gpt and claude
)
