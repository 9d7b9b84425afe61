"""The verb `tvau ask`: a question about a recent event, to the device that saw it, through the broker."""

import json
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.console import Console

from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.control.commands import Answer
from tvau_edge.runtime.delivery.requests import Requester
from tvau_edge.runtime.errors import RequestError

console = Console(stderr=True)


def ask_verb(
    event: Annotated[UUID, typer.Argument(help="Id of the event, as in its verdicts.")],
    question: Annotated[
        str, typer.Argument(help="The question; what was said of the event before is known.")
    ],
    config: Annotated[Path, typer.Option(help="The device's configuration, a TOML file.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait for the answer.")] = 90.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the answer here.")] = None,
) -> None:
    """Ask a device about a recent event; its commands.enabled must name 'ask'."""
    site = load_config(config)
    root = site.broker.topic or f"tvau/{site.device}"
    payload = json.dumps({"event": str(event), "question": question}).encode()
    with Requester(site.broker, "ask") as requester, console.status("asking"):
        raw = requester.request(f"{root}/command/ask", payload, "application/json", seconds)
    try:
        answer = Answer.model_validate_json(raw)
    except ValidationError as error:
        raise RequestError(
            f"the device {site.device} answers what this version does not understand"
        ) from error
    if not answer.ok or answer.result is None:
        raise RequestError(f"the device {site.device} does not answer: {answer.error}")
    Console(highlight=False, soft_wrap=True).print(str(answer.result.get("answer", "")), markup=False)
    if json_file:
        json_file.write_text(json.dumps(answer.result, indent=2) + "\n")
