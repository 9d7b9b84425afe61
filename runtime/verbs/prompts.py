"""The verb `tvau prompts`: show, set and undo the class prompts of a site, while it runs or not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.errors import PromptsError
from tvau_edge.runtime.language.class_prompts import CONTEXT, PromptSet, read_checked
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.prompt_store import PromptStore

console = Console(stderr=True)
prompts_verb = typer.Typer(
    help="Show, set or undo the class prompts: what counts as abnormal here.", no_args_is_help=True
)

Config = Annotated[Path, typer.Option(help="The site's configuration, a TOML file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the prompts in force here.")]


@prompts_verb.command()
def show(config: Config, json_file: Json = None) -> None:
    """Show the class prompts in force."""
    store, _, _ = _open(config)
    _tell(store.current(), json_file)


@prompts_verb.command("set")
def set_prompts(
    config: Config,
    abnormal: Annotated[
        list[str], typer.Option(help="A behaviour that counts as abnormal; once per behaviour.")
    ],
    normal: Annotated[
        list[str] | None, typer.Option(help="One that counts as normal; without any, those in force stay.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Put other class prompts in force; a `tvau run` that is going takes them up with the next temporal patch."""
    store, bundle, kind = _open(config)

    def read(normal: Sequence[str], abnormal: Sequence[str]) -> tuple[NDArray[np.float32], float]:
        with console.status("reading the prompts"):
            return read_in_process(bundle, kind, normal, abnormal)

    _tell(store.set(abnormal, normal or None, read), json_file)


@prompts_verb.command()
def undo(config: Config, json_file: Json = None) -> None:
    """Go back to the class prompts that were in force before."""
    store, _, _ = _open(config)
    _tell(store.undo(), json_file)


@prompts_verb.command()
def reset(config: Config, json_file: Json = None) -> None:
    """Go back to the bundle's own class prompts, and forget all others."""
    store, _, _ = _open(config)
    store.forget()
    _tell(store.current(), json_file)


def read_in_process(
    bundle: Bundle, kind: str | None, normal: Sequence[str], abnormal: Sequence[str]
) -> tuple[NDArray[np.float32], float]:
    """Read class prompts with the bundle's language model, loaded for that; see `read_checked`.

    Raises:
        PromptsError: the bundle has no language model.
        LanguageModelError: it cannot be loaded.
    """
    file = bundle.language(kind)
    if file is None:
        raise PromptsError(f"{bundle.path} has no language model to read prompts with; export with --llm")
    with LanguageModel(bundle.file(file.file), context=CONTEXT) as model:
        return read_checked(model, bundle, normal, abnormal)


def _open(config: Path) -> tuple[PromptStore, Bundle, str | None]:
    site = load_config(config)
    bundle = Bundle.open(site.bundle, verify=False)
    return PromptStore(site.language.prompts, bundle), bundle, site.language.type


def _tell(prompts: PromptSet, json_file: Path | None) -> None:
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"version {prompts.version}" + ("" if prompts.version else ", the bundle's own"))
    for kind, texts in (("normal", prompts.normal), ("abnormal", prompts.abnormal)):
        for text in texts:
            out.print(f"  {kind:8} {text}", markup=False)
    if prompts.cosine is not None:
        out.print(f"  cosine to the exporter's reading of the bundle's prompts: {prompts.cosine:.5f}")
    if json_file:
        table = {
            "version": prompts.version,
            "normal": prompts.normal,
            "abnormal": prompts.abnormal,
            "cosine": prompts.cosine,
        }
        json_file.write_text(json.dumps(table, indent=2) + "\n")
