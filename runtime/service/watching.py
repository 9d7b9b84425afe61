"""The verb `tvau run`: opens everything that a configuration names, watches, and tells what came of it."""

import errno
import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tvau_edge.runtime.broker_config import parse_broker
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.feed import open_source
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import SiteConfig, load_config, parse_config
from tvau_edge.runtime.control import device_commands, language_commands
from tvau_edge.runtime.control.commands import Commands
from tvau_edge.runtime.delivery.homeassistant import HomeAssistant
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.detection.overlay import Overlay, contact_sheet, record
from tvau_edge.runtime.detection.summary import Summary
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import ConfigError, TvauError
from tvau_edge.runtime.extras import require
from tvau_edge.runtime.language.opening import open_language
from tvau_edge.runtime.language.prompt_store import PromptsInForce, PromptStore
from tvau_edge.runtime.service.metrics import Metrics
from tvau_edge.runtime.service.oversight import Oversight
from tvau_edge.runtime.service.pipeline import Pipeline
from tvau_edge.runtime.service.supervision import Notifier

log = logging.getLogger(__name__)
console = Console(stderr=True)


def run_verb(
    config: Annotated[Path | None, typer.Option(help="The site's configuration, a TOML file.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="A video, folder of images, /dev/video0, rtsp://… or 'gst: …' instead of a file's cameras."
        ),
    ] = None,
    broker: Annotated[str | None, typer.Option(help="host[:port], mqtt://… or mqtts://….")] = None,
    mqtt: Annotated[str | None, typer.Option(help="Version of MQTT: 5 or 3.1.1.")] = None,
    camera: Annotated[str, typer.Option(help="Name of the camera of --source.")] = "camera",
    backend: Annotated[str | None, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, int8 or bf16.")] = None,
    llm: Annotated[str | None, typer.Option(help="Explain events: auto, on or off.")] = None,
    upscale: Annotated[bool, typer.Option(help="Allow a video smaller than the model's input.")] = False,
    recording: Annotated[
        Path | None, typer.Option("--record", help="Draw what was seen over the video into this .mp4.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of heatmaps into this .png.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary here.")] = None,
) -> None:
    """Watch cameras or files and publish verdicts over MQTT."""
    options = {
        "bundle": bundle,
        "source": source,
        "broker": broker,
        "mqtt": mqtt,
        "camera": camera,
        "upscale": upscale,
    }

    def read() -> SiteConfig:
        return configure(config, options, {"backend": backend, "precision": precision}, llm)

    site = read()
    if recording or sheet:
        require("--record" if recording else "--sheet", ["record"])
        if len(site.camera) != 1 or Source.is_live(site.camera[0].source):
            raise ConfigError(
                "--record and --sheet read the video a second time: they work with one file or folder, not with "
                "several cameras or a live one"
            )
    for option, path in (("--record", recording), ("--sheet", sheet), ("--json", json_file)):
        if path is not None:
            check_place(option, path)
    summary, pipeline = watch(site, read if config is not None else None)
    if recording or sheet:
        settings = site.camera[0]
        overlay = Overlay(pipeline.timelines[settings.name], pipeline.thresholds.close)
        for path, write in ((recording, record), (sheet, contact_sheet)):
            if path is not None:
                with open_source(settings) as again:
                    write(again, overlay, path)
                console.print(f"{path} written", highlight=False)
    tell(summary)
    if json_file:
        json_file.write_text(json.dumps(asdict(summary), indent=2) + "\n")


def check_place(option: str, path: Path) -> None:
    """Make sure that a result can be written, before the work that leads to it.

    Raises:
        ConfigError: it cannot; names the option.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from error


def configure(
    file: Path | None, options: dict[str, Any], vision: dict[str, str | None], language: str | None
) -> SiteConfig:
    """Put together the configuration from a file and the command line, which wins.

    Raises:
        ConfigError: a value is wrong, or something that is needed is given nowhere.
    """
    overrides: dict[str, Any] = {}
    if options["bundle"] is not None:
        overrides["bundle"] = options["bundle"].absolute()
    if options["source"] is not None:
        source = options["source"]
        if not Source.is_live(source) and "://" not in source:
            source = str(Path(source).absolute())
        overrides["camera"] = [{"name": options["camera"], "source": source, "upscale": options["upscale"]}]
    tables: dict[str, dict[str, Any]] = {
        "broker": parse_broker(options["broker"]) if options["broker"] is not None else {},
        "vision": {key: value for key, value in vision.items() if value is not None},
        "language": {"enabled": language} if language is not None else {},
    }
    if options["mqtt"] is not None:
        tables["broker"]["protocol"] = options["mqtt"]
    if file is not None:
        return load_config(file, overrides, tables)
    if "bundle" not in overrides or "camera" not in overrides:
        raise ConfigError(
            "give --config FILE, or --bundle DIR and --source VIDEO; `tvau run --help` tells more"
        )
    # Without a site there is no place for an outbox that outlives the run.
    folder = Path(tempfile.mkdtemp(prefix="tvau-"))
    tables["language"]["prompts"] = folder / "prompts.safetensors"
    return parse_config({**tables, **overrides, "outbox": {"path": folder / "outbox.db"}}, "command line")


def watch(site: SiteConfig, reload: Callable[[], SiteConfig] | None = None) -> tuple[Summary, Pipeline]:
    """Open what a configuration names and watch until the sources end or a signal comes.

    Args:
        site: the configuration.
        reload: reads it again, at SIGHUP; None where there is no file.

    Raises:
        TvauError: something cannot be opened; says what, and what to do.
    """
    notifier = Notifier.from_environment()
    before: SiteConfig | None = None  # that worked, while it is not known whether `site` does
    try:
        while True:
            opened = threading.Event()
            try:
                summary, pipeline, following = _watch(site, notifier, reload, opened)
            except TvauError as error:
                if before is None or opened.is_set():
                    raise
                log.error("the new configuration cannot be used, the old one goes on: %s", error)  # noqa: TRY400
                site, before = before, None
                continue
            if following is None:
                return summary, pipeline
            site, before = following, site
    finally:
        notifier.close()


def _watch(
    site: SiteConfig,
    notifier: Notifier,
    reload: Callable[[], SiteConfig] | None,
    opened: threading.Event,
) -> tuple[Summary, Pipeline, SiteConfig | None]:
    """Watch by one configuration; also returns that which is to follow, where one is."""
    with ExitStack() as stack:
        with console.status("opening the bundle"):
            bundle = Bundle.open(site.bundle)

            def open_vision() -> Vision:
                return Vision.open(bundle, site.vision.backend, site.vision.precision, site.vision.threads)

            vision = open_vision()
            stack.callback(vision.close)
            explainer, kind = open_language(site, bundle, stack)
        outbox = Outbox(site.outbox.path, site.outbox.max_bytes, site.outbox.max_age_seconds)
        stack.callback(outbox.close)
        commands = Commands(site.commands.enabled, site.commands.per_minute, site.commands.max_bytes)
        publisher = Publisher(site.broker, site.device, outbox, commands)
        home = HomeAssistant(publisher, site.outbox.path.with_suffix(".homeassistant.json"))

        def delivery() -> dict[str, Any]:
            return asdict(publisher.status())

        oversight = Oversight(site, notifier, publisher.publish_health, delivery, reload, home.announce)
        show = stack.enter_context(_progress())
        pipeline = Pipeline(
            site,
            bundle,
            vision,
            publisher,
            explainer,
            kind,
            show,
            reopen_vision=open_vision,
            on_tick=oversight.tick,
            prompts=PromptsInForce(PromptStore(site.language.prompts, bundle)),
        )
        if site.health.prometheus_port is not None:
            metrics = Metrics(site.health.prometheus_host, site.health.prometheus_port, oversight.health)
            stack.callback(metrics.close)
        device_commands.register(commands, pipeline, publisher)
        # Another view of the same file: what one has seen of it, the other still has to see.
        language_commands.register(commands, pipeline.explainer, PromptStore(site.language.prompts, bundle))
        commands.start()
        stack.callback(commands.close)
        publisher.start()
        home.announce(site)
        _on_signals(pipeline, oversight if reload is not None else None, stack)
        opened.set()
        oversight.attach(pipeline)
        try:
            summary = pipeline.run()
        finally:
            if oversight.following is None:
                notifier.stopping()
            left = publisher.stop()
            if left:
                console.print(f"{left} messages were not delivered; they wait in {site.outbox.path}")
        return summary, pipeline, oversight.following


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Shows how far each camera is; what it gives takes a camera's name and its seconds."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        tasks: dict[str, TaskID] = {}

        def show(camera: str, pts: float) -> None:
            if camera not in tasks:
                tasks[camera] = progress.add_task(camera)
            progress.update(tasks[camera], description=f"{camera} at {pts:.1f} s")

        yield show


def _on_signals(pipeline: Pipeline, oversight: Oversight | None, stack: ExitStack) -> None:
    """SIGINT and SIGTERM stop; SIGHUP has the configuration read again, where there is a file."""
    handlers: dict[int, Callable[..., None]] = {
        signal.SIGINT: lambda *_: pipeline.stop(),
        signal.SIGTERM: lambda *_: pipeline.stop(),
    }
    if oversight is not None:
        handlers[signal.SIGHUP] = lambda *_: oversight.ask_reload()
    for number, handler in handlers.items():
        stack.callback(signal.signal, number, signal.signal(number, handler))


def tell(summary: Summary) -> None:
    """Say in a few lines what came of a run."""
    for camera in summary.cameras:
        console.print(
            f"{camera.camera}: {camera.patches} temporal patches, {camera.dropped} dropped, {camera.events} events",
            highlight=False,
        )
    memory = f", peak memory {summary.peak_memory / 1e6:.0f} MB" if summary.peak_memory else ""
    console.print(
        f"{summary.verdicts} verdicts, {summary.explained} events explained, vision {summary.vision_ms:.1f} ms per "
        f"temporal patch{memory}",
        highlight=False,
    )
