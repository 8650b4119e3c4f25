"""Averages of weights, beside sums of whole weight matrices in float64; and what can't be averaged, by name."""

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from average_cases import LORA, make_part
from conftest import TEMPLATE, make_tokenizer, write_base
from safetensors.torch import load_file, save_file

from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.averaging import Average, reduce_rank, write_average
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.digests import verify_files
from rmtrain.model.parts import TensorFiles, open_part
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.model.saving import merge
from rmtrain.recipe.schema import LoraSection

Weights = dict[str, torch.Tensor]


def whole(folder: Path) -> Weights:
    """All weights of a checkpoint, adapters merged, in float64."""
    model = load_checkpoint(str(folder)).model
    return {name: tensor.double() for name, tensor in merge(model).module.state_dict().items()}


def begun(base: Path, seed: int = 0) -> Weights:
    """All weights of a base with its new head, in float64."""
    model = load_backbone(str(base), None, BackboneOptions("float32"), 3, seed)
    return {name: tensor.double() for name, tensor in model.module.state_dict().items()}


def total(*terms: tuple[float, Weights]) -> Weights:
    return {name: sum((w * of[name] for w, of in terms), torch.zeros(1).double()) for name in terms[0][1]}


def assert_same(found: Weights, expected: Weights, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=0, msg=name)


def averaged(folders: list[Path], output: Path, weights: tuple[float, ...] = (), **options: Any) -> Any:
    parts = tuple(open_part(str(folder)) for folder in folders)
    shares = weights or tuple(1 / len(parts) for _ in parts)
    return write_average(Average(parts, shares, **options), output, {"method": "test"})


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of one base and head, of other ranks and scales."""
    place = tmp_path_factory.mktemp("adapters")
    kinds = [LORA, LoraSection(rank=3, alpha=2.0), LoraSection(rank=4, alpha=3.0, rslora=True)]
    return [make_part(place / f"{noise}", base, noise, lora) for noise, lora in enumerate(kinds)]


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two whole models of one base and head."""
    place = tmp_path_factory.mktemp("whole")
    return [make_part(place / f"{noise}", base, noise, None) for noise in range(2)]


# The sums


@pytest.mark.parametrize("weights", [(), (0.5, 0.3, 0.2)], ids=["equal", "given"])
def test_adapters_are_averaged_by_their_changes_of_the_weights(
    adapters: list[Path], weights: tuple[float, ...], tmp_path: Path
) -> None:
    written = averaged(adapters, tmp_path / "mean", weights)
    shares = weights or (1 / 3,) * 3
    assert_same(whole(tmp_path / "mean"), total(*zip(shares, map(whole, adapters), strict=True)))
    assert (written.rank, written.lost) == (9, 0.0)
    verify_files(tmp_path / "mean")
    block = json.loads((tmp_path / "mean/rmtrain.json").read_text())["averaged"]
    assert block == {"method": "test", "rank": 9, "rank_loss": 0.0}


def test_an_average_of_averages_is_one_of_their_parts(adapters: list[Path], tmp_path: Path) -> None:
    averaged(adapters[:2], tmp_path / "two")
    averaged([tmp_path / "two", adapters[2]], tmp_path / "three", (2 / 3, 1 / 3))
    averaged(adapters, tmp_path / "at-once")
    assert_same(whole(tmp_path / "three"), whole(tmp_path / "at-once"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_models_are_averaged_tensor_by_tensor(base: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    parts = [make_part(tmp_path / f"{noise}", base, noise, None, dtype=dtype) for noise in range(3)]
    written = averaged(parts, tmp_path / "mean", (0.2, 0.3, 0.5))
    expected = total(*zip((0.2, 0.3, 0.5), map(whole, parts), strict=True))
    tolerance = 1e-6 if dtype is torch.float32 else 2**-8 * 2
    assert_same(whole(tmp_path / "mean"), expected, tolerance)
    assert written == (None, None)
    for name, tensor in load_file(tmp_path / "mean/model.safetensors").items():
        assert tensor.dtype == load_file(parts[0] / "model.safetensors")[name].dtype


def test_one_tensor_of_each_part_is_in_memory(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    get = TensorFiles.get

    def watched(self: TensorFiles, name: str) -> torch.Tensor:
        assert {other for other, tensor in read if tensor() is not None} <= {name}
        tensor: torch.Tensor = get(self, name)
        read.append((name, weakref.ref(tensor)))
        return tensor

    monkeypatch.setattr(TensorFiles, "get", watched)
    averaged(models, tmp_path / "mean")
    assert len(read) == 3 * len(load_file(models[0] / "model.safetensors"))  # the first twice, for its type


def test_files_cut_otherwise_are_averaged_alike(models: list[Path], tmp_path: Path) -> None:
    tensors = load_file(models[1] / "model.safetensors")
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in models[1].iterdir():
        if path.name != "model.safetensors":
            (cut / path.name).write_bytes(path.read_bytes())
    names = sorted(tensors)
    halves = {"model-00001-of-00002": names[::2], "model-00002-of-00002": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, cut / f"{file}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f"{f}.safetensors" for f, own in halves.items() for n in own}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    averaged(models, tmp_path / "one")
    averaged([cut, models[0]], tmp_path / "other")
    assert len([*(tmp_path / "other").glob("*.safetensors")]) == 2
    assert_same(whole(tmp_path / "other"), whole(tmp_path / "one"))


@pytest.mark.parametrize("alpha", [0.5, -0.25])
def test_extrapolation_goes_on_from_base_and_first_head(
    base: Path, adapters: list[Path], models: list[Path], alpha: float, tmp_path: Path
) -> None:
    for name, parts in (("adapters", adapters[:2]), ("whole", models)):
        averaged(parts, tmp_path / name, extrapolate=alpha)
        mean = total(*((0.5, whole(part)) for part in parts))
        assert_same(whole(tmp_path / name), total((1 + alpha, mean), (-alpha, begun(base))), 2e-6)


def test_extrapolation_of_an_adapter_that_was_trained_further(adapters: list[Path], base: Path, tmp_path: Path) -> None:
    further = make_part(tmp_path / "further", base, 7, start=adapters[1])
    averaged([further], tmp_path / "out", extrapolate=0.5)
    assert_same(whole(tmp_path / "out"), total((1.5, whole(further)), (-0.5, whole(adapters[1]))), 2e-6)


def test_a_lower_rank_is_the_best_of_that_rank_and_its_loss_is_stated(adapters: list[Path], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(7, 5, generator=generator), torch.randn(5, 9, generator=generator)
    made_b, made_a, lost, norm = reduce_rank(b, a, 2)
    u, s, v = torch.linalg.svd((b @ a).double())
    torch.testing.assert_close((made_b @ made_a).double(), u[:, :2] * s[:2] @ v[:2], atol=1e-5, rtol=0)
    assert lost == pytest.approx(float((s[2:] ** 2).sum()))
    assert norm == pytest.approx(float((s**2).sum()))
    averaged(adapters, tmp_path / "exact")
    same_rank = averaged(adapters, tmp_path / "all", rank=9)
    assert (same_rank.rank, same_rank.lost) == (9, pytest.approx(0, abs=1e-6))
    assert_same(whole(tmp_path / "all"), whole(tmp_path / "exact"), 1e-5)
    less = averaged(adapters, tmp_path / "less", rank=4)
    exact, cut = whole(tmp_path / "exact"), whole(tmp_path / "less")
    start = begun(Path(open_part(str(adapters[0])).base[0]))  # type: ignore[index]
    layers = [name for name in exact if name.endswith("proj.weight")]
    squares = [
        sum(float(((one[n] - two[n]) ** 2).sum()) for n in layers) for one, two in ((exact, cut), (exact, start))
    ]
    assert less.rank == 4
    assert less.lost == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-3)
    assert 0 < less.lost < 1


# What can't be averaged


def test_other_bases_heads_templates_and_shapes_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    one = make_part(tmp_path / "one", base, 0)
    strange = make_tokenizer()
    strange.chat_template = TEMPLATE.replace(" [INST] ", " [INST] w1 ")
    started = make_part(tmp_path / "started", base, 1, start=one)
    cases: Mapping[str, tuple[Path, str]] = {
        "base": (make_part(tmp_path / "base", write_base(tmp_path / "other", seed=1), 1), "differ in the base model"),
        "seed": (make_part(tmp_path / "seed", base, 1, seed=5), "drawn from the seed 0.*drawn from the seed 5"),
        "start": (started, "drawn from the seed 0.*that of the adapter .*one"),
        "template": (make_part(tmp_path / "template", base, 1, tokenizer=strange), "chat_template_sha256"),
        "targets": (make_part(tmp_path / "targets", base, 1, LoraSection(rank=2, targets=["q_proj"])), "only one of"),
        "nf4": (make_part(tmp_path / "nf4", base, 1, quantization="nf4"), "quantisation of the base: none, and nf4"),
        "kind": (make_part(tmp_path / "kind", base, 1, None), "they differ in the kind: an adapter"),
    }
    for other, told in cases.values():
        with pytest.raises(InputError, match=told):
            averaged([one, other], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_types_and_kinds_that_have_no_exact_average_are_refused(base: Path, models: list[Path], tmp_path: Path) -> None:
    half = make_part(tmp_path / "half", base, 1, None, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"F32 .*, and BF16"):
        averaged([models[0], half], tmp_path / "out")
    with pytest.raises(InputError, match="use_dora"):
        open_part(str(make_part(tmp_path / "dora", base, 1, LoraSection(rank=2, dora=True))))


def test_a_moved_copy_of_the_base_is_the_same_base(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    averaged([adapters[0], make_part(tmp_path / "on-moved", moved, 1)], tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_damaged_part_leaves_nothing(adapters: list[Path], models: list[Path], base: Path, tmp_path: Path) -> None:
    for lora, file in ((LORA, "adapter_model.safetensors"), (None, "model.safetensors")):
        damaged = make_part(tmp_path / f"damaged-{file}", base, 1, lora)
        tensors = load_file(damaged / file)
        name = next(name for name in tensors if "q_proj" in name)
        tensors[name][0, 0] = float("nan")
        save_file(tensors, damaged / file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="not finite"):
            averaged([adapters[0] if lora else models[0], damaged], tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
