"""The file in which class prompts that were set at run time outlive a restart, with the versions before them.

A safetensors file: tensor `features.<version>` [2, D] float32 for each version, and their texts in its metadata. Who
writes it replaces it in one step, under a lock; who reads it looks whether it is another file than last time.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import PromptsError
from tvau_edge.runtime.language.class_prompts import PromptSet, levels
from tvau_edge.runtime.verdict import Prompts

log = logging.getLogger(__name__)

_KEPT = 16  # versions that can be gone back to
_KEY = "prompts"

Read = Callable[[tuple[str, ...], tuple[str, ...]], tuple[NDArray[np.float32], float]]


class _Version(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1)]
    normal: Annotated[tuple[str, ...], Field(min_length=1)]
    abnormal: Annotated[tuple[str, ...], Field(min_length=1)]
    cosine: float


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Annotated[str, Field(description="sha256 of the manifest of the bundle whose features these are")]
    last: Annotated[int, Field(ge=0, description="the highest version that ever was")]
    versions: tuple[_Version, ...]


class PromptStore:
    """The class prompts of one site: those of its bundle, until others are set.

    Args:
        path: of the file; it need not be there.
        bundle: whose model reads the prompts.
    """

    def __init__(self, path: Path, bundle: Bundle) -> None:
        self.path, self._bundle = path, bundle
        self._seen: tuple[int, int] | None = None

    def current(self) -> PromptSet:
        """The prompts in force.

        Raises:
            PromptsError: the file is damaged, or its features are another bundle's.
        """
        self._seen = self._stamp()
        contents, features = self._load()
        if contents is None or not contents.versions:
            return PromptSet.of_bundle(self._bundle)
        newest = contents.versions[-1]
        return PromptSet(
            newest.version, newest.normal, newest.abnormal, features[newest.version], newest.cosine
        )

    def changed(self) -> bool:
        """Whether the file is another one than `current` read; costs one look at its directory entry."""
        return self._stamp() != self._seen

    def set(self, abnormal: list[str], normal: list[str] | None, read: Read) -> PromptSet:
        """Put other prompts in force.

        Args:
            abnormal: behaviours, which become prompts at three levels.
            normal: behaviours; None keeps the prompts that are in force.
            read: gives the features [2, D] of normal and abnormal prompts, and their cosine; `read_checked` does.

        Raises:
            PromptsError: a behaviour cannot be used, or the device reads prompts wrongly; nothing has changed then.
            LanguageModelError: llama.cpp cannot read them.
        """
        behaviours = levels("abnormal", abnormal)
        others = levels("normal", normal) if normal is not None else None
        with self._locked():
            before = self.current()
            kept = others or before.normal
            if same := set(behaviours) & set(kept):
                raise PromptsError(f"{min(same, key=len)!r} cannot be both normal and abnormal")
            features, cosine = read(kept, behaviours)
            contents, stored = self._load()
            version = (contents.last if contents else 0) + 1
            new = _Version(version=version, normal=kept, abnormal=behaviours, cosine=cosine)
            versions = (*(contents.versions if contents else ()), new)[-_KEPT:]
            self._save(version, versions, {**stored, version: features})
            return PromptSet(version, kept, behaviours, features, cosine)

    def undo(self) -> PromptSet:
        """Go back to the prompts that were in force before; after the last of them come the bundle's own.

        Raises:
            PromptsError: nothing was set, or the file is damaged.
        """
        with self._locked():
            contents, stored = self._load()
            if contents is None or not contents.versions:
                raise PromptsError("the bundle's own class prompts are in force; there is nothing to undo")
            self._save(contents.last, contents.versions[:-1], stored)
            return self.current()

    def forget(self) -> None:
        """Remove the file, damaged or not: the bundle's own prompts are in force again."""
        with self._locked():
            self.path.unlink(missing_ok=True)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _load(self) -> tuple[_Contents | None, dict[int, NDArray[np.float32]]]:
        advice = "; `tvau prompts reset` removes it"
        try:
            with safe_open(self.path, "numpy") as file:
                contents = _Contents.model_validate_json((file.metadata() or {}).get(_KEY, ""))
                features = {v.version: file.get_tensor(f"features.{v.version}") for v in contents.versions}
        except FileNotFoundError:
            return None, {}
        except (OSError, SafetensorError, ValidationError) as error:
            raise PromptsError(f"{self.path} is damaged or no file of class prompts{advice}") from error
        if contents.bundle != self._bundle.sha256:
            raise PromptsError(
                f"{self.path} holds class prompts as another bundle reads them{advice}; then set them anew"
            )
        width = self._bundle.class_features().shape
        if any(table.shape != width or not np.isfinite(table).all() for table in features.values()):
            raise PromptsError(f"{self.path}: features are not {list(width)} finite numbers{advice}")
        return contents, {version: np.asarray(table, np.float32) for version, table in features.items()}

    def _save(
        self, last: int, versions: tuple[_Version, ...], features: dict[int, NDArray[np.float32]]
    ) -> None:
        contents = _Contents(bundle=self._bundle.sha256, last=last, versions=versions)
        tensors = {f"features.{v.version}": np.ascontiguousarray(features[v.version]) for v in versions}
        partial = self.path.with_name(f"{self.path.name}.part")
        with partial.open("wb") as file:
            file.write(save(tensors, {_KEY: json.dumps(contents.model_dump(mode="json"))}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, whichever process it is in."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(f"{self.path.name}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise PromptsError(f"{self.path} cannot be written: {error.strerror or error}") from error


class PromptsInForce:
    """Has the vision graph use what the store says, whoever changes it: between two passes.

    Args:
        store: of the site.
    """

    def __init__(self, store: PromptStore) -> None:
        self._store = store
        self._looked = False
        self._features: NDArray[np.float32] | None = None  # in force, once there were any
        self._vision: Vision | None = None  # that has them

    def refresh(self, vision: Vision) -> Prompts | None:
        """Take up other prompts, if there are any; returns them. A file that is damaged is told of and left.

        Args:
            vision: the graph that will look next; another one than last time, when it had to be loaded anew.
        """
        prompts = self._news()
        if self._features is not None and (prompts is not None or vision is not self._vision):
            vision.set_class_features(self._features)
            self._vision = vision
        return prompts

    def _news(self) -> Prompts | None:
        if self._looked and not self._store.changed():
            return None
        self._looked = True
        try:
            prompts = self._store.current()
        except PromptsError as error:
            log.error("the class prompts stay as they are: %s", error)  # noqa: TRY400 (the message tells all)
            return None
        self._features = prompts.features
        log.info("class prompts of version %d are in force", prompts.version)
        return Prompts(normal=list(prompts.normal), abnormal=list(prompts.abnormal), version=prompts.version)
