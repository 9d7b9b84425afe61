"""What goes on beside a running pipeline: the watchdog put off, health published, the configuration read again."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import SiteConfig
from tvau_edge.runtime.errors import TvauError
from tvau_edge.runtime.service.health import Health, HealthReader
from tvau_edge.runtime.service.pipeline import Pipeline
from tvau_edge.runtime.service.supervision import Notifier

log = logging.getLogger(__name__)

_LIVE = {"camera", "trigger"}  # tables that change while the pipeline runs
_DIALOGUE_SECONDS = 600.0  # that one explanation may take; then only a new process helps
_OPENING_SECONDS = 600.0  # that a bundle may take to open, beyond the watchdog's usual patience


class Oversight:
    """Called by the thread that runs the pipeline, a few times a second.

    Args:
        site: the configuration in force.
        notifier: towards systemd.
        publish: takes the message on the topic `health`.
        delivery: gives the keys of `DeliveryHealth`.
        reload: reads the configuration again; None where there is no file.
        changed: told of a configuration whose cameras or trigger are in force from now on.
    """

    def __init__(
        self,
        site: SiteConfig,
        notifier: Notifier,
        publish: Callable[[bytes], None],
        delivery: Callable[[], Mapping[str, Any]],
        reload: Callable[[], SiteConfig] | None,
        changed: Callable[[SiteConfig], None] = lambda site: None,
    ) -> None:
        self.site = site
        self.following: SiteConfig | None = None  # that the process should go on with, opened anew
        self._notifier, self._publish, self._delivery, self._reload = notifier, publish, delivery, reload
        self._changed = changed
        self._reader = HealthReader(site.device)
        self._pipeline: Pipeline | None = None
        self._asked = False
        self._next_health = self._next_alive = 0.0
        self._hung = False

    def attach(self, pipeline: Pipeline) -> None:
        """Watch over this pipeline; it is about to run."""
        self._pipeline = pipeline
        self._notifier.ready(f"watching {len(self.site.camera)} cameras")
        if self._notifier.watchdog_seconds:
            self._notifier.allow(self._notifier.watchdog_seconds)

    def ask_reload(self) -> None:
        """Have the configuration read again. May be called from a signal handler."""
        self._asked = True

    def health(self) -> Health:
        """How everything does now."""
        assert self._pipeline is not None  # attached before anyone can ask
        return self._reader.read(self._pipeline, self._delivery())

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._asked:
            self._asked = False
            self._read_again()
        if self._notifier.watchdog_seconds and now >= self._next_alive and self._sound():
            self._next_alive = now + self._notifier.watchdog_seconds / 3
            self._notifier.alive()
        if now >= self._next_health:
            self._next_health = now + self.site.health.seconds
            try:
                self._publish(self.health().to_json())
            except Exception:  # it must not cost what it reports on
                log.exception("health cannot be published")

    def _sound(self) -> bool:
        """Whether nothing hangs that only a new process can mend: a language model cannot be taken from its thread."""
        explainer = self._pipeline.explainer if self._pipeline is not None else None
        hangs = explainer is not None and explainer.busy_seconds > _DIALOGUE_SECONDS
        if hangs and not self._hung:
            log.error(
                "the language model hangs for more than %g s; systemd's watchdog will start the service anew, where "
                "it is set",
                _DIALOGUE_SECONDS,
            )
        self._hung = hangs
        return not hangs

    def _read_again(self) -> None:
        if self._reload is None or self._pipeline is None:
            log.warning("there is no configuration file to read again")
            return
        self._notifier.reloading()
        try:
            site = self._reload()
            changed = {
                name for name in SiteConfig.model_fields if getattr(site, name) != getattr(self.site, name)
            }
            if not changed:
                log.warning("the configuration was read again; nothing has changed")
            elif changed <= _LIVE:
                self._pipeline.apply(site)
                self.site = site
                self._changed(site)
                log.warning("the configuration was read again; new: %s", ", ".join(sorted(changed)))
            else:
                _check(site, changed)
                self.following = site
                log.warning(
                    "the configuration was read again; opening anew for: %s", ", ".join(sorted(changed))
                )
                self._notifier.allow(_OPENING_SECONDS)
                self._pipeline.stop()
                return
        except TvauError as error:
            log.error("the new configuration is wrong, the old one stays: %s", error)  # noqa: TRY400 (tells all)
        self._notifier.ready(f"watching {len(self.site.camera)} cameras")


def _check(site: SiteConfig, changed: set[str]) -> None:
    """Find out what can be found out before the old configuration is given up.

    Raises:
        TvauError: the new one cannot work.
    """
    site.broker.password()
    if "bundle" in changed:
        Bundle.open(site.bundle)
