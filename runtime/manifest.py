"""The bundle's manifest: what a bundle holds, how its graphs are fed, and where it came from.

`manifest.json` is written last, so a folder without one is never a bundle. Every other file of the bundle
stands in `files` with its size and sha256.
"""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

SCHEMA: Literal["tvau.bundle/1"] = "tvau.bundle/1"

Backend = Literal["onnxruntime", "openvino", "tensorrt"]
Precision = Literal["fp32", "fp16", "int8"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A plain name: no folder, nothing hidden, nothing that leaves the bundle.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]


class Part(BaseModel):
    """Base of the manifest's tables: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Part):
    """One file of the bundle, verified before it is loaded."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0, description="bytes")]


class Geometry(Part):
    """How a clip is cut for the vision graph.

    The vision graph takes `frames` [B, 2, height, width, 3] uint8 RGB: one temporal patch (two frames,
    Qwen2.5-VL's temporal_patch_size) per row.
    """

    width: Annotated[PositiveInt, Field(description="pixels, a multiple of 28")]
    height: Annotated[PositiveInt, Field(description="pixels, a multiple of 28")]
    frames_per_second: Annotated[
        PositiveFloat, Field(description="the rate at which the checkpoint sees frames")
    ]
    temporal_patches: Annotated[
        int, Field(ge=2, description="T': temporal patches in the window of a dialogue")
    ]
    patch_size: PositiveInt = 14
    merge_size: PositiveInt = 2
    temporal_patch_size: Literal[2] = 2

    @model_validator(mode="after")
    def _multiple(self) -> "Geometry":
        unit = self.patch_size * self.merge_size
        for name, value in (("width", self.width), ("height", self.height)):
            if value % unit:
                lower, upper = value // unit * unit, (value // unit + 1) * unit
                near = f"{lower} or {upper}" if lower else f"{upper}"
                raise ValueError(f"{name} {value} is not a multiple of {unit}; the nearest: {near}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """The patch grid (H', W')."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def merged_grid(self) -> tuple[int, int]:
        """The grid of merged tokens (rows, columns) that P_V lies on."""
        rows, columns = self.grid
        return rows // self.merge_size, columns // self.merge_size

    @property
    def seconds_per_patch(self) -> float:
        """Seconds of video that one temporal patch stands for."""
        return self.temporal_patch_size / self.frames_per_second


class Normalization(Part):
    """What the vision graph does to pixels before the first layer; recorded here, done inside the graph."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    scale: float = 1 / 255


class TowerWidths(Part):
    """Widths of the vision tower and AHD, from which memory and time follow."""

    blocks: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    mlp: PositiveInt
    full_attention: Annotated[int, Field(ge=0, description="blocks that attend over the whole grid")]
    window: Annotated[PositiveInt, Field(description="patches in a whole window")]
    taps: PositiveInt
    heatmap_hidden: PositiveInt
    out: Annotated[PositiveInt, Field(description="D")]


class DecoderWidths(Part):
    """Widths of the language model."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    mlp: PositiveInt
    vocabulary: PositiveInt
    tied: bool


class GraphFile(Part):
    """One form of the vision or the RAE graph."""

    backend: Backend
    precision: Precision
    file: FileName


class LanguageFile(Part):
    """The language model at one GGUF type, such as q8_0."""

    type: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    file: FileName


class Question(Part):
    """One question of the dialogue and the field of the verdict that its answer fills."""

    key: Literal["anomaly", "target", "motion", "from", "to"]
    text: Annotated[str, StringConstraints(min_length=1, max_length=500)]


class Language(Part):
    """How the language model is asked (paper, section on dialogue)."""

    files: list[LanguageFile]
    hidden_size: Annotated[PositiveInt, Field(description="D: width of P_V, P_An and the token embeddings")]
    tokens_per_second: PositiveFloat
    system_prompt: str
    questions: Annotated[list[Question], Field(min_length=1)]
    max_answer_tokens: PositiveInt = 48
    widths: Annotated[DecoderWidths | None, Field(description="absent in bundles of older versions")] = None
    adapter: Annotated[
        FileName | None,
        Field(description="the LoRA that is merged into the files, as GGUF; taken off to read class prompts"),
    ] = None


class ClassPrompts(Part):
    """The two sets of class prompts and the file with their features.

    `file` is a safetensors file with one tensor `class_features` [2, D] float32: row 0 is normal, row 1
    is abnormal.
    """

    normal: Annotated[list[str], Field(min_length=1)]
    abnormal: Annotated[list[str], Field(min_length=1)]
    file: FileName = "class_prompts.safetensors"


class Thresholds(Part):
    """Hysteresis of the trigger, on the patch's score (0..1)."""

    open: Annotated[float, Field(gt=0, lt=1)]
    close: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _order(self) -> "Thresholds":
        if self.close > self.open:
            raise ValueError(
                f"close {self.close} is above open {self.open}; an event would close as it opens"
            )
        return self


class Check(Part):
    """One comparison of an artifact with what it was made from, on real frames, done at export."""

    artifact: FileName
    against: str
    tensor: str
    metric: Literal["relative_error", "cosine", "sqnr_db", "correlation"]
    value: float
    limit: float
    data: Annotated[str, Field(description="what was fed: which video, how many temporal patches")]


class Provenance(Part):
    """Where the checkpoint came from and what made the bundle."""

    checkpoint: str
    checkpoint_sha256: Annotated[Sha256, Field(description="over the checkpoint's files, names and contents")]
    description: str = ""
    options_sha256: Annotated[str, Field(description="over the options and frames of the export")] = ""
    versions: Annotated[dict[str, str], Field(description="library -> version used at export")] = {}


class Manifest(Part):
    """Everything a runtime must know before it loads a graph."""

    schema_: Annotated[Literal["tvau.bundle/1"], Field(alias="schema")] = SCHEMA
    name: str
    created: Annotated[str, Field(description="RFC 3339, UTC")]
    licence: str
    provenance: Provenance
    geometry: Geometry
    normalization: Normalization
    thresholds: Thresholds
    class_prompts: ClassPrompts
    vision: Annotated[list[GraphFile], Field(min_length=1)]
    rae: Annotated[list[GraphFile], Field(min_length=1)]
    base_tokens: Annotated[PositiveInt, Field(description="N_base of the RAE")] = 10
    language: Language | None = None
    tower: Annotated[TowerWidths | None, Field(description="absent in bundles of older versions")] = None
    checks: list[Check] = []
    quantization: Annotated[dict[str, object], Field(description="report of the quantizer, free form")] = {}
    files: dict[FileName, FileEntry]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _files_exist(self) -> "Manifest":
        named = [graph.file for graph in (*self.vision, *self.rae)] + [self.class_prompts.file]
        if self.language:
            named += [file.file for file in self.language.files]
            named += [self.language.adapter] if self.language.adapter else []
        for name in named:
            if name not in self.files:
                raise ValueError(f"{name} is used but does not stand in files")
        return self
