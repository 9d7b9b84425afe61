"""The errors of the runtime, named for the situation that the user is in."""

from tvau_edge.devices.errors import TvauError

__all__ = [
    "BackendError",
    "BrokerError",
    "BundleError",
    "CommandError",
    "ConfigError",
    "DiskFullError",
    "EvidenceError",
    "LanguageModelError",
    "MissingExtraError",
    "OutboxError",
    "PromptsError",
    "RequestError",
    "SourceError",
    "TvauError",
]


class ConfigError(TvauError):
    """The configuration file or a command-line value is wrong: names file, key, value and what is allowed."""


class BundleError(TvauError):
    """The bundle is missing, torn, altered, or of a schema that this version cannot read."""


class SourceError(TvauError):
    """A camera, file or directory of images cannot be opened, decoded, or has ended when it should not."""


class BrokerError(TvauError):
    """The MQTT broker is absent, refuses us, or does not present the certificate that we expect."""


class CommandError(TvauError):
    """A command over MQTT is refused: unknown, off, too frequent, too large, or its payload does not fit."""


class OutboxError(TvauError):
    """The outbox's database cannot be used."""


class BackendError(TvauError):
    """An inference back end cannot load or run a graph."""


class LanguageModelError(TvauError):
    """llama.cpp cannot load or evaluate the language model."""


class RequestError(TvauError):
    """A request over MQTT has no answer, or one that says no."""


class PromptsError(TvauError):
    """Class prompts cannot be used: empty, too long, or read differently here than at export."""


class EvidenceError(TvauError):
    """Evidence of an event is damaged, of another model, or no longer kept."""


class DiskFullError(TvauError):
    """The disk has no room for what was being written; what was there before is whole."""


class MissingExtraError(TvauError):
    """An optional part is not installed.

    Args:
        what: the thing that was asked for, as the user named it.
        extra: the extra of `tvau-edge` that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra '{extra}', which is not installed: pip install 'tvau-edge[{extra}]'"
        )
        self.extra = extra
