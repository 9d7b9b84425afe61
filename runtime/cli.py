"""The command `tvau`: gathers the verbs that the rooms register and turns errors into plain sentences."""

import logging
import sys
from importlib.metadata import EntryPoint, entry_points

import typer
from rich.console import Console

from tvau_edge.devices.errors import TvauError
from tvau_edge.runtime.errors import MissingExtraError
from tvau_edge.runtime.extras import installed
from tvau_edge.runtime.service.logs import make_handler

GROUP = "tvau.verbs"


def missing_extra(verb: EntryPoint) -> str | None:
    """Name the first extra that `verb` needs and that is not installed, or None."""
    return next((extra for extra in verb.extras if not installed(extra)), None)


def build_app() -> typer.Typer:
    """Build the command from the registered verbs; one whose extra is missing is hidden, and says so when asked."""
    app = typer.Typer(
        name="tvau",
        help="Text-guided video anomaly understanding on edge devices.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        verbose: bool = typer.Option(False, "--verbose", "-v", help="Log each step."),
        log_json: bool = typer.Option(False, "--log-json", help="Log lines of JSON."),
    ) -> None:
        level = logging.INFO if verbose else logging.WARNING
        logging.basicConfig(level=level, handlers=[make_handler(sys.stderr, as_json=log_json)])

    add_verbs(app, GROUP, "tvau")
    return app


def add_verbs(app: typer.Typer, group: str, command: str) -> None:
    """Add the verbs that rooms register under an entry-point group to `app`, which is called as `command`."""
    for verb in sorted(entry_points(group=group), key=lambda entry: entry.name):
        extra = missing_extra(verb)
        if extra is not None:
            _add_missing(app, command, verb.name, extra)
            continue
        target = verb.load()
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=verb.name)
        else:
            app.command(verb.name)(target)


def _add_missing(app: typer.Typer, command: str, verb: str, extra: str) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(verb, hidden=True, context_settings=settings, add_help_option=False)
    def refuse() -> None:
        raise MissingExtraError(f"{command} {verb}", extra)


def main() -> None:
    """Run `tvau`; a `TvauError` becomes its message and its exit code, never a traceback."""
    try:
        build_app()()
    except TvauError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/] {_escape(str(error))}", highlight=False
        )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
