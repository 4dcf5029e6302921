"""The strict base class of all sections of `params.yaml`, and their shared types."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _inside_raw(name: str) -> str:
    if not name or name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{name!r} does not name a file inside data/raw/; give a relative path without '..'")
    return name


RawFile = Annotated[str, AfterValidator(_inside_raw)]
RawFiles = Annotated[
    list[RawFile],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    # A single name is written back as a string, as most people give it.
    PlainSerializer(lambda names: names[0] if len(names) == 1 else names),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Strict and frozen: refuses unknown keys, values of another type, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
