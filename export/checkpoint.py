"""A T-VAU checkpoint: a Hugging Face Qwen2.5-VL folder with tvau.json, tvau.safetensors and maybe a LoRA.

Opening a checkpoint reads configuration and headers only and checks that everything fits; tensors are read one
at a time, with the LoRA merged on the way.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator
from tokenizers import Tokenizer
from torch import Tensor, nn

from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.lora import CONFIG as LORA_CONFIG
from tvau_edge.export.lora import Lora, canonical
from tvau_edge.export.model.ahd import AHDConfig, AnomalyHeatmapDecoder
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.prompts import Layer, TextConfig, class_features
from tvau_edge.export.model.rae import RAEConfig, RegionAwareEncoder
from tvau_edge.export.model.vision import VisionConfig, VisionTower
from tvau_edge.export.tensors import Stored, TensorFiles, read_json
from tvau_edge.runtime.manifest import Geometry, Question, Thresholds

Module = TypeVar("Module", bound=nn.Module)
Shape = tuple[int, ...]

SCHEMA: Literal["tvau.checkpoint/1"] = "tvau.checkpoint/1"
HASHED = (".json", ".safetensors", ".txt", ".jinja")  # what makes a checkpoint; not its card or its licence


class PromptSets(BaseModel):
    """The texts whose features AHD compares patches with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    normal: Annotated[list[str], Field(min_length=1, description="what is usual, at the three nested levels")]
    abnormal: Annotated[list[str], Field(min_length=1, description="what is not")]

    @field_validator("normal", "abnormal")
    @classmethod
    def _words(cls, prompts: list[str]) -> list[str]:
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty; write at least one word")
        return prompts


class TvauConfig(BaseModel):
    """tvau.json: what a checkpoint of T-VAU says beyond Qwen2.5-VL's own configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    schema_: Annotated[Literal["tvau.checkpoint/1"], Field(alias="schema")] = SCHEMA
    name: Annotated[str, Field(min_length=1)]
    licence: Annotated[str, Field(min_length=1, description="SPDX identifier or a sentence")]
    description: Annotated[str, Field(description="provenance: what it was trained on, by what")] = ""
    clip: Annotated[Geometry, Field(description="the clips that the checkpoint was trained for")]
    taps: Annotated[list[PositiveInt], Field(min_length=1, description="blocks counted from one, ascending")]
    base_tokens: Annotated[PositiveInt, Field(description="N_base of the RAE")] = 10
    class_prompts: PromptSets
    thresholds: Thresholds
    system_prompt: str
    questions: Annotated[list[Question], Field(min_length=1)]
    max_answer_tokens: PositiveInt = 48

    @field_validator("taps")
    @classmethod
    def _ascending(cls, taps: list[int]) -> list[int]:
        if taps != sorted(set(taps)):
            raise ValueError(f"taps {taps} are not ascending")
        return taps

    @classmethod
    def read(cls, file: Path) -> "TvauConfig":
        """Read tvau.json; raises CheckpointError that names each wrong key, its value and what is allowed."""
        try:
            return cls.model_validate(read_json(file))
        except ValidationError as error:
            lines = []
            for wrong in error.errors(include_url=False):
                key = ".".join(str(part) for part in wrong["loc"])
                value = "" if wrong["type"] == "missing" else f" (found {wrong['input']!r:.120})"
                lines.append(f"{key}: {wrong['msg']}{value}")
            raise CheckpointError(f"{file}: " + "; ".join(lines)) from error


@dataclass(frozen=True)
class Checkpoint:
    """An opened, checked checkpoint. Names of tensors are canonical (see `lora.canonical`).

    Attributes:
        path: the folder.
        config: tvau.json.
        huggingface: config.json as it stands.
        vision: widths of the vision tower.
        text: widths of the language model.
        tied: whether the output head is the token embedding.
        ahd: widths of the heatmap decoder.
        rae: widths of the anomaly encoder.
        lora: the adapter, when there is one.

    Example:
        >>> checkpoint = Checkpoint.open("reference/checkpoint")
        >>> for name, tensor in checkpoint.language_tensors():
        ...     print(name, tuple(tensor.shape))
    """

    path: Path
    config: TvauConfig
    huggingface: Mapping[str, Any]
    vision: VisionConfig
    text: TextConfig
    tied: bool
    ahd: AHDConfig
    rae: RAEConfig
    lora: Lora | None
    _model: TensorFiles
    _tvau: TensorFiles

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Open the checkpoint in the folder `path`.

        Raises:
            CheckpointError: a file is missing or truncated, a value is not allowed, or a tensor is missing,
                unknown or of a wrong shape; the message names file, key or tensor, found and expected.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; a checkpoint is a folder with config.json in it")
        huggingface = read_json(path / "config.json")
        vision, text, tied = read_model_config(path / "config.json", huggingface)
        config = TvauConfig.read(path / "tvau.json")
        if config.taps[-1] > vision.depth:
            raise CheckpointError(
                f"{path / 'tvau.json'}: taps: {config.taps[-1]} is unknown; the vision tower has blocks 1 to "
                f"{vision.depth}"
            )
        if (config.clip.patch_size, config.clip.merge_size) != (vision.patch_size, vision.spatial_merge_size):
            raise CheckpointError(
                f"{path / 'tvau.json'}: clip: patch_size and merge_size must be config.json's, "
                f"{vision.patch_size} and {vision.spatial_merge_size}"
            )
        if not (path / "tokenizer.json").is_file():
            raise CheckpointError(f"{path / 'tokenizer.json'}: no such file; a checkpoint needs it")
        files = TensorFiles.open_model(path)
        model = TensorFiles(canonical_names(files.stored))
        check_shapes(model.stored, model_shapes(vision, text, tied), "config.json", path)
        tvau = TensorFiles.open(path / "tvau.safetensors")
        ahd, rae = check_decoders(path / "tvau.safetensors", tvau.stored, config, vision, text)
        shapes = {name: stored.shape for name, stored in model.stored.items()}
        lora = Lora.open(path / "lora", shapes) if (path / "lora" / LORA_CONFIG).is_file() else None
        return cls(path, config, huggingface, vision, text, tied, ahd, rae, lora, model, tvau)

    def names(self) -> list[str]:
        """Canonical names of the model's tensors, vision tower and language model, without AHD and RAE."""
        return list(self._model.stored)

    def shape(self, name: str) -> Shape:
        """Shape of one tensor of the model."""
        return self._model.stored[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor of the model, as it is stored."""
        return self._model.stored[name].nbytes

    def tensor(self, name: str) -> Tensor:
        """Read one tensor as it is stored, without LoRA."""
        return self._model.tensor(name)

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read only these rows of a matrix, without LoRA."""
        return self._model.rows(name, indices)

    def language_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The language model's tensors, one at a time: `model.…`, and `lm_head.weight` when it is not tied.

        A tensor that the LoRA changes comes in float32, others in the dtype that they are stored in.
        """
        for name in sorted(name for name in self.names() if not name.startswith("visual.")):
            if not (self.tied and name == "lm_head.weight"):
                yield name, self._merged(name)

    def vision_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The vision tower's tensors, one at a time, named as in `VisionTower` (no `visual.`)."""
        for name in sorted(name for name in self.names() if name.startswith("visual.")):
            yield name.removeprefix("visual."), self._merged(name)

    def ahd_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of AHD, named as in `AnomalyHeatmapDecoder`."""
        return self._decoder("ahd.")

    def rae_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of RAE, named as in `RegionAwareEncoder`."""
        return self._decoder("rae.")

    def vision_module(self, width: int | None = None, height: int | None = None) -> AnomalyVision:
        """The vision graph as a module in float32, in evaluation mode.

        Args:
            width: pixels, a multiple of 28; the checkpoint's own when left out.
            height: likewise.

        Raises:
            CheckpointError: the size is not possible.
        """
        width, height = width or self.config.clip.width, height or self.config.clip.height
        try:
            with torch.device("meta"):
                module = AnomalyVision(self.vision, self.ahd, height, width, tuple(self.config.taps))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        fill(module.vision, self.vision_tensors())
        fill(module.ahd, self.ahd_tensors())
        return module.eval()

    def rae_module(self, width: int | None = None, height: int | None = None) -> RegionAwareEncoder:
        """The RAE as a module in float32, in evaluation mode; sizes as in `vision_module`."""
        width, height = width or self.config.clip.width, height or self.config.clip.height
        try:
            with torch.device("meta"):
                module = RegionAwareEncoder(self.rae, *self.vision.grid(height, width))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        fill(module, self.rae_tensors())
        return module.eval()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json; raises CheckpointError when it cannot be read."""
        file = self.path / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file}: not a tokenizer: {error}") from error

    def class_features(
        self, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None
    ) -> Tensor:
        """The class-prompt features [2, D] float32 of these prompts, or of the checkpoint's own.

        Raises:
            CheckpointError: a class has no prompt, or a prompt is empty.
        """
        tokenizer = self.tokenizer()
        prompts = (
            normal if normal is not None else self.config.class_prompts.normal,
            abnormal if abnormal is not None else self.config.class_prompts.abnormal,
        )
        ids = [[tokenizer.encode(text, add_special_tokens=False).ids for text in texts] for texts in prompts]
        beyond = [token for texts in ids for text in texts for token in text if token >= self.text.vocab_size]
        if beyond:
            raise CheckpointError(
                f"{self.path / 'tokenizer.json'}: token {beyond[0]} is beyond the model's vocabulary of "
                f"{self.text.vocab_size}; tokenizer and model do not belong together"
            )
        try:
            return class_features(self, self.text, *ids)
        except ValueError as error:
            raise CheckpointError(f"class prompts: {error}") from error

    def sha256(self) -> str:
        """One digest over the names and contents of the checkpoint's files, 64 hexadecimal digits."""
        files = [file for folder in (self.path, self.path / "lora") for file in folder.glob("*")]
        digest = hashlib.sha256()
        for file in sorted(file for file in files if file.suffix in HASHED and file.is_file()):
            name = file.relative_to(self.path).as_posix().encode()
            digest.update(len(name).to_bytes(4, "big") + name + file.stat().st_size.to_bytes(8, "big"))
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def _merged(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        return self.lora.merge(name, tensor) if self.lora else tensor

    def _decoder(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name in sorted(self._tvau.stored):
            if name.startswith(prefix):
                yield name.removeprefix(prefix), self._tvau.tensor(name)


def read_model_config(file: Path, values: Mapping[str, Any]) -> tuple[VisionConfig, TextConfig, bool]:
    """Read config.json, nested (text_config, vision_config) or of the older form with the text's keys flat.

    Raises:
        CheckpointError: it is not Qwen2.5-VL's, or of a kind that is not supported.
    """
    if values.get("model_type") != "qwen2_5_vl":
        raise CheckpointError(f"{file}: model_type is {values.get('model_type')!r}; expected 'qwen2_5_vl'")
    text, vision = values.get("text_config") or values, values.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise CheckpointError(f"{file}: text_config and vision_config must be tables")
    try:
        configs = VisionConfig.from_huggingface(vision), TextConfig.from_huggingface(text)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return *configs, bool(values.get("tie_word_embeddings") or text.get("tie_word_embeddings"))


def canonical_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The same tensors under their canonical names; raises CheckpointError when two are the same one."""
    renamed: dict[str, Stored] = {}
    for entry in stored.values():
        name = canonical(entry.name)
        if name in renamed:
            raise CheckpointError(
                f"{entry.file}: '{entry.name}' and '{renamed[name].name}' are the same tensor"
            )
        renamed[name] = entry
    return renamed


def model_shapes(vision: VisionConfig, text: TextConfig, tied: bool) -> dict[str, Shape]:
    """Canonical name -> shape of every tensor that a model of these widths has."""
    unit = vision.patch_size * vision.spatial_merge_size
    with torch.device("meta"):
        tower, layer = VisionTower(vision, unit, unit), Layer(text)
    shapes = {f"visual.{name}": tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    shapes["model.embed_tokens.weight"] = (text.vocab_size, text.hidden_size)
    for index in range(text.num_hidden_layers):
        for name, tensor in layer.state_dict().items():
            shapes[f"model.layers.{index}.{name}"] = tuple(tensor.shape)
    shapes["model.norm.weight"] = (text.hidden_size,)
    if not tied:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def check_shapes(
    stored: Mapping[str, Stored], expected: Mapping[str, Shape], source: str, place: Path
) -> None:
    """Raise CheckpointError for the first tensor that is missing, of a wrong shape, or unknown.

    Args:
        stored: what the files hold.
        expected: what they should.
        source: what `expected` follows from, for the message.
        place: file or folder that a missing tensor is missing from.
    """
    for name, shape in expected.items():
        if name not in stored:
            hint = "; tie_word_embeddings is false, so it must be there" if name == "lm_head.weight" else ""
            raise CheckpointError(f"{place}: tensor '{name}' {list(shape)} is missing{hint}")
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{stored[name].file}: tensor '{name}' has shape {list(stored[name].shape)}; "
                f"expected {list(shape)}, which follows from {source}"
            )
    for name in stored.keys() - expected.keys() - {"lm_head.weight"}:  # a tied head may be stored as well
        raise CheckpointError(f"{stored[name].file}: tensor '{name}' is unknown to a model as {source} says")


def check_decoders(
    file: Path, stored: Mapping[str, Stored], config: TvauConfig, vision: VisionConfig, text: TextConfig
) -> tuple[AHDConfig, RAEConfig]:
    """Read the widths of AHD and RAE off tvau.safetensors and check them against all the rest.

    Raises:
        CheckpointError: a tensor is missing, unknown or of a wrong shape.
    """
    width = {"vision": vision.out_hidden_size, "text": text.hidden_size}
    if width["vision"] != width["text"]:
        raise CheckpointError(
            f"{file.parent / 'config.json'}: vision_config.out_hidden_size {width['vision']} is not the language "
            f"model's hidden_size {width['text']}"
        )
    for name, entry in stored.items():
        rank = 4 if name.startswith("rae.conv.") else 2
        rank = 1 if name.endswith(".bias") or name == "ahd.weights" else rank
        if len(entry.shape) != rank or 0 in entry.shape:
            raise CheckpointError(
                f"{file}: tensor '{name}' has shape {list(entry.shape)}; expected {rank} axes"
            )
    shapes = {name: entry.shape for name, entry in stored.items()}
    parts = {
        p: {n.removeprefix(p): s for n, s in shapes.items() if n.startswith(p)} for p in ("ahd.", "rae.")
    }
    try:
        ahd = AHDConfig.from_shapes(parts["ahd."])
    except KeyError as error:
        raise CheckpointError(f"{file}: tensor 'ahd.{error.args[0]}' is missing") from error
    try:
        rae = RAEConfig.from_shapes(parts["rae."])
    except KeyError as error:
        raise CheckpointError(f"{file}: tensor 'rae.{error.args[0]}' is missing") from error
    # What the rest of the checkpoint fixes; the hidden widths alone are free.
    ahd = AHDConfig(len(config.taps), vision.hidden_size, ahd.hidden, text.hidden_size)
    rae = RAEConfig(rae.channels, rae.region_hidden, rae.global_hidden, config.base_tokens, text.hidden_size)
    with torch.device("meta"):
        modules = {"ahd.": AnomalyHeatmapDecoder(ahd), "rae.": RegionAwareEncoder(rae, 3, 3)}
    expected = {
        prefix + name: tuple(tensor.shape)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    check_shapes(stored, expected, "config.json and tvau.json", file)
    return ahd, rae


def fill(module: Module, tensors: Iterator[tuple[str, Tensor]]) -> Module:
    """Give a module made on the meta device its parameters, float32, one at a time.

    Raises:
        ValueError: a parameter was left without a value.
    """
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        value = tensor.to(torch.float32, copy=True)  # its own memory, not the file's
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} has no value")
    return module
