"""Check data from JSON and YAML files against a pydantic model. Errors name the file, the key, the value and what to do."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nnunet_glims.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, where: str, line_of: Callable[[list[Any]], int] | None = None) -> Model:
    """Return `data` as an instance of `model`; raise `UsageError` that lists every problem as `where: key: what is wrong`.

    Args:
        model: a pydantic model.
        data: content of the file.
        where: how messages name the file.
        line_of: returns the line of a value in the file, given the keys and list indices that lead to it. With it, problems
            are listed as `where:line: ...`.
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
    """Return the end of an error message about an unknown name: the nearest known one, or all of them."""
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
    if problem["type"] == "value_error":  # raised by a validator of this package, whose message says what is wrong
        return f"{key or 'the file'}: {problem['ctx']['error']}"
    return f"{key or 'the file'}: {problem['msg']} (got {problem['input']!r})"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # an index of a list
            continue
        annotation = model.model_fields[part].annotation
        parts = (annotation, *get_args(annotation))
        # In Python 3.10 list[X] is an instance of type, but issubclass does not accept it.
        classes = [kind for kind in parts if isinstance(kind, type) and get_origin(kind) is None]
        inner = [kind for kind in classes if issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)
