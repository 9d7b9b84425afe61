"""The runtime's stages of one bundle, opened for measuring: vision, RAE and dialogue."""

from types import TracebackType

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.llama import LanguageModel


class Stages:
    """A bundle's stages; closes them as a context manager.

    Attributes:
        bundle: which.
        vision, rae: as the runtime opens them.
        dialogue: None where it was not wanted.
        language: GGUF type of the language model, or None.

    Args:
        bundle: verified.
        backend: of the vision graph, as for `Vision.open`.
        precision: of the vision graph, as for `Vision.open`.
        language: GGUF type; None takes the bundle's first.
        dialogue: open the language model.
        threads: CPU threads of each stage; None leaves it to the back ends, which take all cores: slow where
            others use them too.

    Raises:
        LanguageModelError: a dialogue is wanted and the bundle has no language model.
        BundleError: it has none of that type.
        BackendError, MissingExtraError: as `Vision.open`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        precision: str = "auto",
        language: str | None = None,
        *,
        dialogue: bool = True,
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.dialogue: Dialogue | None = None
        self.language: str | None = None
        self._model: LanguageModel | None = None
        self.vision = Vision.open(bundle, backend, precision, threads)
        self.rae = Rae.open(bundle, backend, threads)
        if dialogue:
            self._open_dialogue(language, threads)

    def _open_dialogue(self, kind: str | None, threads: int | None) -> None:
        manifest, file = self.bundle.manifest, self.bundle.language(kind)
        if file is None or manifest.language is None:
            raise LanguageModelError(
                f"{self.bundle.path} has no language model, so its answers cannot be measured; leave the dialogue "
                "out (--no-dialogue), or export the bundle with one"
            )
        context = context_needed(manifest.language, manifest.geometry, manifest.base_tokens)
        self._model = LanguageModel(self.bundle.file(file.file), context=context, threads=threads)
        self.dialogue = Dialogue(self._model, manifest.language, manifest.geometry)
        self.language = file.type

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of graphs and language model."""
        if self._model is not None:
            self._model.close()
        self.rae.close()
        self.vision.close()
