"""A benchmark of two sections, one of which pools two subsets, defined in this one file."""

from rmtrain.data.benchmarks.definition import Benchmark, Era
from rmtrain.data.benchmarks.fields import id_in, prompt_in, right_and_wrong, text_in

SECTIONS = {"Facts": ("dates", "places"), "Style": ("style",)}


def read(row):
    kind = text_in(row, "kind")
    right, wrong = [text_in(row, "good")], [text_in(row, "bad")]
    return right_and_wrong(f"{kind}/{id_in(row)}", prompt_in(row), right, wrong, kind)


def sections(sizes):
    return {section: dict.fromkeys(kinds, 1) for section, kinds in SECTIONS.items()}


def eras(sizes, prior):
    return {"current": Era({"dates": 1, "places": 1, "style": 2})}


BENCHMARK = Benchmark(
    name="toy",
    title="Toy Benchmark",
    hub_id="nobody/toy",
    split="test",
    read=read,
    sections=sections,
    eras=eras,
    counts={"dates": 2, "places": 1, "style": 1},
)
