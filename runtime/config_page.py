"""The reference page of the configuration, written from the types that check it.

`python -m tvau_edge.runtime.config_page` prints the page; the project keeps it as docs/configuration.md.
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tvau_edge.runtime.config import SiteConfig

_HEAD = """# Configuration

`tvau run --config site.toml` reads one TOML file. Relative paths in it are relative to its folder; an unknown key or
a wrong value ends the start with a line that names file, key, value and what is allowed. This page is written by
`python -m tvau_edge.runtime.config_page` from the types that check the file.
"""


def page() -> str:
    """The whole page in Markdown."""
    parts = [_HEAD, *_tables("", SiteConfig, SiteConfig.__doc__ or "")]
    return "\n".join(parts)


def _tables(name: str, model: type[BaseModel], about: str) -> Iterator[str]:
    """A section for a table, then one for each table in it."""
    title = f"`{name}`" if name else "Top level"
    rows, below = [], []
    for key, field in model.model_fields.items():
        inner, many = _table_of(field.annotation)
        if inner is None:
            rows.append(f"| `{key}` | {_kind(field)} | {_default(field)} | {field.description or ''} |")
            continue
        path = f"{name.strip('[]')}.{key}".lstrip(".")
        below.append((f"[[{path}]]" if many else f"[{path}]", inner, field.description or ""))
    text = f"## {title}\n\n{about.splitlines()[0]}\n"
    if rows:
        text += "\n| key | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    yield text
    for path, inner, description in below:
        sentence = description[:1].upper() + description[1:]
        yield from _tables(path, inner, f"{sentence}.")


def _table_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The table that a key holds, if it holds one, and whether it may stand several times."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is list:
        inner, _ = _table_of(inside[0])
        return inner, inner is not None
    for candidate in (annotation, *inside):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate, False
    return None, False


def _kind(field: FieldInfo) -> str:
    """The value's type and range in words."""
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for kind, name, sign in ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))
        if isinstance(bound, kind)
    ]
    return ", ".join([_words(field.annotation), *bounds])


def _words(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = FieldInfo.from_annotation(annotation)
        return _kind(limits)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in inside if part is not type(None))
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in inside)
    if origin is tuple:
        return f"[{', '.join(_words(part) for part in inside if part is not Ellipsis)}]"
    if origin is list:
        return f"list of {_words(inside[0])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (str, Path)):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
