"""The verb `tvau engines`: build what TensorRT runs, on the device that will run it; show what there is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.engines.build import Built, Told, build_engines
from tvau_edge.runtime.engines.cache import EngineCache
from tvau_edge.runtime.engines.news import EngineNews
from tvau_edge.runtime.errors import ConfigError, TvauError

app = typer.Typer(help="Engines that TensorRT runs: built on the device itself.", no_args_is_help=True)
console = Console(stderr=True)

CacheFolder = Annotated[
    Path | None, typer.Option(help="Folder of the engines; else $TVAU_ENGINES, else the user's cache.")
]


@app.command("build")
def build_verb(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder of the bundle; else the configuration's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The site's configuration: its bundle, cameras, and broker for news.")
    ] = None,
    cache: CacheFolder = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Largest batch: the number of cameras. [default: 4]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Build engines that are there as well.")] = False,
    tf32: Annotated[
        bool, typer.Option(help="Let float32 products use tensor cores, with 10-bit factors.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was built here.")] = None,
) -> None:
    """Build the engines of a bundle's graphs. Minutes on a large board, tens of minutes on a small one."""
    site = load_config(config) if config else None
    folder = bundle or (site.bundle if site else None)
    if folder is None:
        raise ConfigError(
            "give the folder of a bundle, or --config FILE; `tvau engines build --help` tells more"
        )
    news = EngineNews(site.broker, site.device) if site else None
    size = batch or (len(site.camera) if site else 4)
    with Shown(news) as shown:
        try:
            built = build_engines(
                Bundle.open(folder), EngineCache(cache), batch=size, again=again, tf32=tf32, progress=shown
            )
        except TvauError as error:
            if news:
                news.tell({"state": "failed", "reason": str(error)})
            raise
    if news:
        news.tell({"state": "ready", "graph": ", ".join(engine.graph for engine in built)})
    console.print(report(built))
    if json_file:
        engines = [{**asdict(engine), "engine": str(engine.engine)} for engine in built]
        json_file.write_text(json.dumps(engines, indent=2) + "\n")


def report(built: list[Built]) -> Table:
    """What was built, or was there."""
    table = Table(title="engines")
    table.add_column("graph")
    table.add_column("MB", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("engine", overflow="fold")
    for engine in built:
        seconds = f"{engine.seconds:.0f}" if engine.seconds else "was there"
        table.add_row(engine.graph, f"{engine.size / 1e6:.1f}", seconds, str(engine.engine))
    return table


@app.command("list")
def list_verb(
    cache: CacheFolder = None, json_file: Annotated[Path | None, typer.Option("--json")] = None
) -> None:
    """List the engines that are there, and what each is for."""
    table = Table(title=str(EngineCache(cache).folder))
    for column in ("graph", "TensorRT", "GPU", "batch", "MB", "created"):
        table.add_column(column)
    found = []
    for file in sorted(EngineCache(cache).folder.glob("*.json")):
        try:
            facts = json.loads(file.read_bytes())
            key = facts["key"]
            row = (facts["graph"], key["tensorrt"], key["gpu"], facts["batch"], f"{facts['bytes'] / 1e6:.1f}")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one of ours, or not whole; loading it says so
        found.append(facts)
        table.add_row(*(str(value) for value in row), str(facts.get("created", "")))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


class Shown(Told):
    """Draws a build's progress, one bar for each phase, and passes the news on."""

    def __init__(self, news: EngineNews | None) -> None:
        super().__init__(news.tell if news else lambda _: None)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Shown":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, graph: str) -> None:
        """A graph is next."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks = {"": self._progress.add_task(f"engine of {graph}", total=None)}
        super().begin(graph)

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase advances; one that is over leaves the screen."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(name))
        super().phase(name, done, total)
