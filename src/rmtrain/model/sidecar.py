"""What scoring reads of a checkpoint of ours: the `scoring` block of its `rmtrain.json`; all else there is a record."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmtrain.data.prepare import evaluation_rule
from rmtrain.errors import CheckpointError
from rmtrain.json_values import JsonObject
from rmtrain.model.reward_model import BackboneOptions
from rmtrain.recipe.schema import EvaluationSection, Recipe

FORMAT = 1  # the format of the block; a change that today's readers would misread gets the next number

_PLACES = {  # where a recipe has each value
    "model": ("dtype", "quantization", "attention", "packing"),
    "data": ("max_length", "over_length"),
    "evaluation": ("tokens_per_batch",),
}


class Scoring(BaseModel):
    """How a checkpoint turns conversations into rewards; keys that a later version adds are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    contract: dict[str, Any] | None = None
    """How conversations become tokens; see `Renderer.contract`."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the backbone's weights and arithmetic; None is that of its config."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Quantisation of an adapter's base."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of padded rows."""
    packing: Literal["shared_prompt", "padding_free", "none"] = "shared_prompt"
    """How batches are laid out."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Maximum tokens of a sequence; None is what the model has positions for, up to 4,096."""
    over_length: Literal["truncate_prompt", "truncate_completion"] = "truncate_prompt"
    """What is cut of a longer sequence."""
    tokens_per_batch: Annotated[int, Field(ge=1)] = EvaluationSection.model_fields["tokens_per_batch"].default
    """Maximum tokens per forward pass."""

    def options(self, dtype: str, is_adapter: bool) -> BackboneOptions:
        """How the backbone is loaded; `dtype` is that of its config. Weights that were merged are not quantised."""
        quantization = self.quantization if is_adapter else "none"
        return BackboneOptions(self.dtype or dtype, quantization, self.attention, self.packing)

    def block(self, contract: JsonObject) -> JsonObject:
        """The block as it is written to the file, with a rendering contract."""
        return {"format": FORMAT, **self.model_dump(), "contract": contract}


def scoring_of(recipe: Recipe) -> Scoring:
    """How the model of a training run is scored."""
    return Scoring(**_of_recipe(recipe.model_dump(mode="json")))


def read_scoring(sidecar: dict[str, Any], path: Path) -> Scoring:
    """The block of a `rmtrain.json`; version 0.1.0 wrote none, and left its values in the contract and the recipe.

    Raises:
        CheckpointError: a later version wrote it in a way that this one can't read, or it is damaged.
    """
    block = sidecar.get("scoring")
    if "scoring" not in sidecar:
        recipe = sidecar.get("recipe")
        block = {**_of_recipe(recipe if isinstance(recipe, dict) else {}), "contract": sidecar.get("contract")}
    elif not isinstance(block, dict) or block.get("format") != FORMAT:
        written = block.get("format") if isinstance(block, dict) else block
        raise CheckpointError(
            f"{path}: its scoring block has the format {written!r}, and this version of rmtrain reads format {FORMAT}",
            "update rmtrain, or use another checkpoint if the file is damaged",
        )
    try:
        scoring = Scoring(**block)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        raise CheckpointError(
            f"{path}: can't be used for scoring ({wrong})", "the file is damaged; use another checkpoint"
        ) from error
    if not isinstance(scoring.contract, dict):
        raise CheckpointError(f"{path}: no rendering contract in it", "use another checkpoint")
    return scoring


def record_in(sidecar: dict[str, Any]) -> dict[str, Any]:
    """What a `rmtrain.json` holds besides how the model is scored: how it was made."""
    return {key: value for key, value in sidecar.items() if key not in ("format", "contract", "scoring")}


def _of_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The block's values as a recipe has them, whatever else it holds."""
    sections = {name: values for name in _PLACES if isinstance(values := recipe.get(name), dict)}
    known = {key: values[key] for name, values in sections.items() for key in _PLACES[name] if key in values}
    return {**known, "over_length": evaluation_rule(known.get("over_length", "truncate_prompt"))}
