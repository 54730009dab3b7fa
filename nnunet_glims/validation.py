"""Data from JSON files checked against a pydantic model, with errors that name file, key, value and the way out."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nnunet_glims.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, where: str, line_of: Callable[[list[Any]], int] | None = None) -> Model:
    """`data` as a `model`; raises `UsageError` listing every problem as `where: key: what is wrong`.

    Args:
        model: a pydantic model.
        data: from a file.
        where: the file.
        line_of: the line in the file of a value, by the keys and numbers that lead to it; then `where:line: ...`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            line = "" if line_of is None else f":{line_of(list(problem['loc']))}"
            problems.append(f"{where}{line}: {_describe(model, problem)}")
    raise UsageError("\n".join(problems))


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message about an unknown name."""
    in_small_letters = {one.lower(): one for one in known}
    close = get_close_matches(name.lower(), in_small_letters, n=1, cutoff=0.5)
    return f"did you mean {in_small_letters[close[0]]!r}?" if close else f"known are {', '.join(known)}"


def _describe(model: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(path[-1], _keys_at(model, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: this key is required"
    if problem["type"] == "value_error":  # a check of our own, which names what is wrong
        return f"{key or 'the file'}: {problem['ctx']['error']}"
    return f"{key or 'the file'}: {problem['msg']} (got {problem['input']!r})"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # in a list
            continue
        annotation = model.model_fields[part].annotation
        parts = (annotation, *get_args(annotation))
        # Python 3.10 takes list[X] for a class, which issubclass does not.
        classes = [kind for kind in parts if isinstance(kind, type) and get_origin(kind) is None]
        inner = [kind for kind in classes if issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)
