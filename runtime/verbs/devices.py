"""The verb `tvau devices`: which devices we know, which one this is, and what fits on them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.devices.detection import Detection, detect
from tvau_edge.devices.planner import Fit, Setup, fit, preferred
from tvau_edge.devices.profile import Profile, jetpacks, profile, profiles, sources
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import choose_graph
from tvau_edge.runtime.verbs.fitting import workload

app = typer.Typer(help="Devices that we know, the one this is, and what fits on them.", no_args_is_help=True)
console = Console()

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write it here as well.")]


def write_json(file: Path | None, values: Any) -> None:
    """Write a report where `--json` says."""
    if file:
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@app.command("list")
def list_verb(json_file: JsonFile = None) -> None:
    """List the devices."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)  # what the other verbs are given
    for name in ("GiB", "GB/s", "INT8\nTOPS", "FP16\nTFLOPS"):
        table.add_column(name, justify="right")
    table.add_column("vision", min_width=17)
    table.add_column("GGUF", no_wrap=True)
    for device in profiles().values():
        compute, prefer = device.compute, device.prefer
        table.add_row(
            device.name,
            f"{device.memory.bytes / 2**30:.0f}",
            f"{device.memory.bandwidth / 1e9:.0f}",
            f"{compute.int8 / 1e12:.1f}",
            f"{compute.fp16 / 1e12:.1f}",
            f"{prefer.vision} {', '.join(prefer.precisions)}",
            prefer.gguf,
        )
    console.print(table)
    write_json(json_file, [device.model_dump(mode="json") for device in profiles().values()])


@app.command("show")
def show_verb(
    name: Annotated[str, typer.Argument(help="Name of the device, as `tvau devices list` says.")],
    json_file: JsonFile = None,
) -> None:
    """Show a device's profile, each fact with its source."""
    device = profile(name)
    console.print(described(device))
    for key in sorted(set(device.sources.values())):
        source = sources()[key]
        console.print(f"[bold]{key}[/] ({source.read}): {source.title}", highlight=False)
        if source.url:
            console.print(f"  {source.url}", highlight=False, soft_wrap=True)
    write_json(json_file, device.model_dump(mode="json"))


def described(device: Profile) -> Table:
    """A profile's facts with their sources."""
    table = Table(title=device.title, caption=device.note or None)
    for column in ("fact", "value", "source"):
        table.add_column(column, overflow="fold")
    values = device.model_dump(mode="json")
    for fact in device.facts():
        part, _, key = fact.partition(".")
        value = values[part][key] if key else values[part]
        table.add_row(fact, _readable(value), device.source_key(fact))
    for name in device.jetpack:
        release = jetpacks()[name]
        brings = f"Ubuntu {release.ubuntu}, CUDA {release.cuda}, TensorRT {release.tensorrt}, Python {release.python}"
        table.add_row(f"JetPack {name}", f"Jetson Linux {release.l4t}: {brings}", release.source)
    return table


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(
            f"{item['name']} ({item['watts']} W)" if isinstance(item, dict) else str(item) for item in value
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@app.command("detect")
def detect_verb(
    root: Annotated[
        Path, typer.Option(help="Where the files of the machine lie: /, or the root file system of a device.")
    ] = Path("/"),
    bundle: Annotated[
        Path | None,
        typer.Option(help="Also say which of its vision graphs runs on this very machine, and why."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say which device this is, what says so, and on which back end it watches."""
    found = detect(root)
    console.print(seen(found))
    console.print(
        f"[bold]{found.profile.name}[/]: {found.profile.title}, since {found.reason}", highlight=False
    )
    if found.profile.note:
        console.print(found.profile.note, highlight=False)
    prefer = found.profile.prefer
    console.print(f"it watches best on {prefer.vision}: {', else '.join(prefer.precisions)}", highlight=False)
    vision = None
    if bundle is not None:
        vision = choose_graph(Bundle.open(bundle, verify=False).manifest.vision, "auto", "auto")
        console.print(
            f"this machine runs {vision.file} on {vision.backend} in {vision.precision}: {vision.reason}",
            highlight=False,
        )
    machine = found.machine
    write_json(
        json_file,
        {
            "profile": found.profile.model_dump(mode="json"),
            "reason": found.reason,
            "vision": asdict(vision) if vision else None,
            "jetpack": found.jetpack.model_dump(mode="json") if found.jetpack else None,
            "memory": machine.memory,
            "cores": machine.cores,
            "seen": [{"where": s.where, "what": s.what, "meaning": s.meaning} for s in machine.seen],
        },
    )


def seen(found: Detection) -> Table:
    """What was seen, and what it means."""
    table = Table(title="seen")
    for column in ("where", "what", "means"):
        table.add_column(column, overflow="fold")
    for item in found.machine.seen:
        table.add_row(item.where, item.what, item.meaning)
    return table


@app.command("fit")
def fit_verb(
    model: Annotated[str, typer.Argument(help="7b, 3b, or the folder of a bundle.")],
    device: Annotated[
        str,
        typer.Option(help="A name of `tvau devices list`, 'this' for this machine, or 'all' for a table."),
    ] = "this",
    cameras: Annotated[int, typer.Option(min=1, help="Cameras watched at once.")] = 1,
    gguf: Annotated[
        str | None, typer.Option(help="GGUF type of the language model, or none; else what suits the device.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say whether a model fits a device, how fast it would be, and what to change. Estimates: see docs/devices.md."""
    load = workload(model)
    if device == "all":
        chosen = list(profiles().values())
    else:
        chosen = [detect().profile if device == "this" else profile(device)]
    answers = [fit(target, load, preferred(target, load, cameras, gguf)) for target in chosen]
    if device == "all":
        console.print(fit_table(load.name, answers))
    else:
        console.print(fit_details(answers[0]))
        for line in answers[0].advice:
            console.print(line, highlight=False)
    write_json(json_file, [answer.as_json() for answer in answers])


def fit_table(model: str, answers: list[Fit]) -> Table:
    """One line for each device."""
    table = Table(title=f"{model}: estimates, not measured", box=None, padding=(0, 1, 0, 0))
    table.add_column("device", no_wrap=True)
    table.add_column("runs", min_width=11)
    for name in ("needs\nGB", "of\nGB", "patch\n/s", "starts\nin s", "token\n/s", "said\nin s"):
        table.add_column(name, justify="right")
    table.add_column("fits", min_width=6)
    for answer in answers:
        setup, speed = answer.setup, answer.speed
        table.add_row(
            answer.device,
            f"{setup.backend} {setup.precision}, {setup.gguf or 'no text'}",
            f"{answer.memory.running / 1e9:.1f}",
            f"{answer.available / 1e9:.1f}",
            f"{speed.patches_per_second:.1f}",
            f"{speed.prefill:.1f}" if setup.gguf else "",
            f"{1 / speed.token:.1f}" if setup.gguf else "",
            f"{speed.dialogue:.0f}" if setup.gguf else "",
            _verdict(answer),
        )
    return table


def _verdict(answer: Fit) -> str:
    if not answer.fits:
        return f"with {_named(answer.instead)}" if answer.instead else "no"
    return ("tight" if answer.tight else "yes") + ("" if answer.keeps_up else ", too slow")


def _named(setup: Setup) -> str:
    if setup.gguf is None:
        return "no text"
    return f"{setup.gguf}, T' {setup.temporal_patches}"


def fit_details(answer: Fit) -> Table:
    """The memory of each part, and the time."""
    setup, speed, memory = answer.setup, answer.speed, answer.memory
    runs = (
        f"{setup.backend} {setup.precision}, {setup.gguf or 'no language model'}, {setup.cameras} camera(s)"
    )
    table = Table(title=f"{answer.model} on {answer.device}: {runs}; estimates, not measured")
    table.add_column("part")
    table.add_column("", justify="right")
    for part, value in asdict(memory).items():
        if part != "engine_build":
            table.add_row(part, f"{value / 1e9:.2f} GB")
    table.add_row("[bold]while it runs[/]", f"[bold]{memory.running / 1e9:.2f} GB[/]")
    if memory.engine_build:
        table.add_row("building the engine", f"{memory.engine_build / 1e9:.2f} GB")
    table.add_row("the device has", f"{answer.available / 1e9:.2f} GB", end_section=True)
    table.add_row("a temporal patch", f"{speed.patch * 1e3:.0f} ms")
    table.add_row("temporal patches per second", f"{speed.patches_per_second:.1f} of {answer.needed_rate:g}")
    if setup.gguf:
        table.add_row("until an answer begins", f"{speed.prefill:.1f} s")
        table.add_row("tokens per second", f"{1 / speed.token:.1f}")
        table.add_row("a dialogue, at most", f"{speed.dialogue:.0f} s")
    table.add_row("[bold]fits[/]", "[bold]yes[/]" if answer.fits else "[bold red]no[/]")
    return table
