"""Opens the language model that a site's configuration names, and what explains events with it."""

from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console

from tvau_edge.devices.host import usable_cores
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import SiteConfig
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.errors import ConfigError, LanguageModelError, MissingExtraError
from tvau_edge.runtime.extras import require
from tvau_edge.runtime.language.calibration import load_calibration
from tvau_edge.runtime.language.explain import Explainer, Explanation, Patience
from tvau_edge.runtime.language.process import LanguageProcess
from tvau_edge.runtime.language.recent_events import RecentEvents
from tvau_edge.runtime.language.server import Language, LanguageSettings
from tvau_edge.runtime.language.worker import RemoteLanguage

console = Console(stderr=True)

MakeExplainer = Callable[[Callable[[Explanation], None]], Explainer]


def open_language(
    site: SiteConfig, bundle: Bundle, stack: ExitStack
) -> tuple[MakeExplainer | None, str | None]:
    """Start the language model and load RAE, unless they are off, absent, or too big and not insisted upon.

    Args:
        site: its configuration.
        bundle: verified.
        stack: closes what is opened here.

    Returns:
        What makes the explainer, and the GGUF type; both None when verdicts go without text.

    Raises:
        ConfigError: the language model is insisted upon and absent, or its calibration is not its own.
        LanguageModelError: it is insisted upon and cannot be loaded.
    """
    wanted = site.language.enabled
    if wanted == "off":
        return None, None
    if site.language.worker is not None:
        remote = RemoteLanguage(site.broker, site.device, site.language.worker)
        stack.callback(remote.close)
        return _maker(site, bundle, remote, stack), "remote"
    file = bundle.language(site.language.type)
    if file is None:
        if wanted == "on":
            raise ConfigError(
                f"language.enabled is 'on', but {bundle.path} has no language model; export with --llm"
            )
        return None, None
    try:
        require("the language model", ["llm"])
        process = LanguageProcess(language_settings(site, bundle, file.type))
    except (MissingExtraError, LanguageModelError) as error:
        if wanted == "on":
            raise
        console.print(f"verdicts go without text: {error}", markup=False, highlight=False)
        return None, None
    stack.callback(process.close)
    return _maker(site, bundle, process, stack), file.type


def _maker(site: SiteConfig, bundle: Bundle, language: Language, stack: ExitStack) -> MakeExplainer:
    rae = Rae.open(bundle, site.vision.backend, site.vision.threads)
    stack.callback(rae.close)
    return lambda publish: make_explainer(site, bundle, rae, language, publish)


def language_settings(site: SiteConfig, bundle: Bundle, kind: str) -> LanguageSettings:
    """How the language model of a site is loaded and asked.

    Raises:
        ConfigError: the calibration is not this model's.
    """
    calibration = site.language.calibration
    if calibration is not None:
        load_calibration(calibration, bundle.sha256, kind)
        calibration = calibration.absolute()
    return LanguageSettings(
        bundle.path.absolute(),
        kind,
        # Detection comes first, and llama.cpp's threads wait for each other: one too many makes all of them slow.
        site.language.threads or max(1, usable_cores() - 1),
        site.language.gpu_layers,
        site.language.history,
        calibration,
        site.language.longest_sequence(bundle.manifest.geometry.temporal_patches),
    )


def make_explainer(
    site: SiteConfig, bundle: Bundle, rae: Rae, language: Language, publish: Callable[[Explanation], None]
) -> Explainer:
    """An explainer with the limits of a site."""
    limits = site.language
    return Explainer(
        rae,
        language,
        publish,
        bundle.manifest.provenance.checkpoint_sha256,
        site.device,
        Patience(
            limits.late_seconds,
            limits.deadline_seconds,
            limits.answer_seconds,
            limits.question_seconds,
            limits.waiting,
        ),
        RecentEvents(limits.kept_events, limits.kept_bytes),
    )
