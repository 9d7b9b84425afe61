"""What pydantic found wrong, in lines for the person who wrote the file: key, value, what is allowed."""

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError

_SECRET = "password"  # noqa: S105 (part of the names of keys whose values are not repeated)


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Say each problem of a `ValidationError` in one line: key, what is wrong, the value, the nearest known key."""
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            yield f"{key}: unknown key; {hint}"
        elif problem["type"] == "missing":
            yield f"{key}: is missing"
        elif isinstance(problem["input"], (str, int, float, bool)) and _SECRET not in key:
            yield f"{key} = {problem['input']!r}: {message}"
        else:
            yield f"{key}: {message}" if key else message


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at `location` below `model`."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        tables = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return [field.alias or name for name, field in model.model_fields.items()]
