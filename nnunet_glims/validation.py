"""Data from JSON files checked against a pydantic model, with errors that name file, key, value and the way out."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from nnunet_glims.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`; raises `UsageError` listing every problem as `where: key: what is wrong`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_describe(model, problem) for problem in error.errors()]
    raise UsageError("\n".join(f"{where}: {problem}" for problem in problems))


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message about an unknown name."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _describe(model: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(path[-1], _keys_at(model, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: this key is required"
    return f"{key or 'the file'}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # in a list
            continue
        annotation = model.model_fields[part].annotation
        parts = (annotation, *get_args(annotation))
        inner = [kind for kind in parts if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)
