"""The JSON beside a drawn clip: what each object is and does in each frame, and what is said of stretches.

One writer (`tvau data draw`) and one reader (the layout of UBnormal, which has no such file itself).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from tvau_edge.benchmarks.errors import DataError
from tvau_edge.runtime.problems import explain

SCHEMA: Literal["tvau.clip/1"] = "tvau.clip/1"
Box = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]
Key = Literal["anomaly", "target", "motion", "from", "to"]


class Part(BaseModel):
    """Base of the tables: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class Thing(Part):
    """One object over the whole clip."""

    track: Annotated[PositiveInt, Field(description="its pixel value in the masks")]
    kind: str
    appearance: str
    anomaly: Annotated[str | None, Field(description="the type of anomaly that it takes part in")] = None
    from_: Annotated[str, Field(alias="from", description="ninth of the frame in which it is first seen")]
    to: Annotated[str, Field(description="ninth of the frame in which it is last seen")]


class ThingInFrame(Part):
    """One object in one frame."""

    track: PositiveInt
    box: Annotated[Box, Field(description="x1, y1, x2, y2 of what shows of it, inclusive pixels")]
    area: Annotated[PositiveInt, Field(description="pixels that show of it")]
    motion: Annotated[str, Field(description="state of motion, as a verb phrase")]
    abnormal: bool
    place: Annotated[str, Field(description="ninth of the frame in which its middle lies")]


class DescribedFrame(Part):
    """The objects of one frame."""

    frame: NonNegativeInt
    objects: list[ThingInFrame]


class DescribedStretch(Part):
    """Frames `first` to `last`, both included, and the right answers to the questions about them."""

    first: NonNegativeInt
    last: NonNegativeInt
    abnormal: Annotated[bool | None, Field(description="null where nobody could tell")]
    narration: str = ""
    answers: Annotated[
        dict[Key, Annotated[list[str], Field(min_length=1)]],
        Field(description="by question, one wording or several"),
    ] = {}


class Description(Part):
    """The whole file."""

    schema_: Annotated[Literal["tvau.clip/1"], Field(alias="schema")] = SCHEMA
    origin: Annotated[str, Field(description="where the clip comes from: drawn, by what, from which seed")]
    split: str
    anomalies: list[str]
    size: tuple[PositiveInt, PositiveInt]
    frames_per_second: Annotated[float, Field(gt=0)]
    objects: list[Thing]
    frames: list[DescribedFrame]
    stretches: list[DescribedStretch] = []


def read_description(path: Path) -> Description:
    """Read the JSON beside a clip.

    Raises:
        DataError: it cannot be read, or is not of this schema; names the key.
    """
    try:
        return Description.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise DataError(
            f"{path}: is no description of schema {SCHEMA}: {'; '.join(explain(error, Description))}"
        ) from error
