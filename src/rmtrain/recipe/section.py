"""The base of all sections of the recipe, and the types of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

SplitName = Literal["train", "validation", "test"]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Shards = Annotated[list[NonEmpty], Field(min_length=1)]  # files of one source
MOST = 2**31 - 1  # largest count: the range of 32-bit positions
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Coefficient = Annotated[float, Field(ge=0, le=1e4)]
Rate = Annotated[float, Field(gt=0, le=10)]
Interval = Annotated[float, Field(ge=0, le=MOST)]
FOLDER_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?$"  # no trailing dot: Windows drops it


class Section(BaseModel, use_attribute_docstrings=True):
    """Base of all sections: unknown keys are errors, types are not converted, and values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)
