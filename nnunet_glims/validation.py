"""Check data from JSON and YAML files against a pydantic model. Errors name file, line, key, what is there, what is wanted.

Types are strict: a text is no number, `true` is no 1, and 1.0 is no whole number. Whole numbers may stand for others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nnunet_glims.errors import UsageError, UserError, cut
from nnunet_glims.files import read_json_document, read_yaml_document

Model = TypeVar("Model", bound=BaseModel)

MOST_PROBLEMS = 20
"""Largest number of problems of a file in one message."""

_WANTED: Mapping[str, str] = {
    **dict.fromkeys(("string_type", "string_unicode", "string_sub_type"), "a text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type", "decimal_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "none_required": "null",
    **dict.fromkeys(
        ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type", "is_sequence_of"), "a list"
    ),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type", "dataclass_exact_type"),
        "a mapping of keys to values",
    ),
    "path_type": "a path",
    "json_invalid": "valid Unicode in all texts",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
"""pydantic's type of a problem -> what is wanted instead, with the names of the problem's context."""


def read_model(
    model: type[Model],
    path: Path,
    error: type[UserError] = UsageError,
    nan_allowed: bool = False,
    is_yaml: bool = False,
) -> Model:
    """Read a JSON or YAML file as an instance of a model.

    Args:
        model: a pydantic model.
        path: path of the file.
        error: class of the errors about the content: `UsageError` for what users write, `ProcessingError` for results.
        nan_allowed: whether NaN and Infinity are allowed in JSON, as in nnU-Net's summary.json.
        is_yaml: whether the file is YAML.

    Raises:
        UsageError: there is no such file, or it is a folder.
        UserError: of the class `error`: see `files.read_json`; or the content does not fit the model. The message lists
            every problem with file, line, key, what is there and what is wanted, sorted by line.
    """
    document = read_yaml_document(path, error) if is_yaml else read_json_document(path, error, nan_allowed)
    return validate(model, document.content, str(path), document.line_of, error)


def validate(
    model: type[Model],
    data: Any,
    where: str,
    line_of: Callable[[list[Any]], int] | None = None,
    error: type[UserError] = UsageError,
) -> Model:
    """Return `data` as an instance of `model`; raise an error that lists every problem as `where: key: what is wrong`.

    Args:
        model: a pydantic model.
        data: content of a file, or values such as JSON has.
        where: how messages name the file.
        line_of: returns the line of a value in the file, given the keys and list indices that lead to it. With it, problems
            are listed as `where:line: ...`, sorted by line.
        error: class of the error.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as problems:
        found = problems.errors(include_url=False)
    raise error(list_problems(_problems(model, data, found), where, line_of))


def list_problems(
    problems: Sequence[tuple[list[Any], str]], where: str, line_of: Callable[[list[Any]], int] | None = None
) -> str:
    """Return the message about problems of a file, each given as the keys that lead to it and what is wrong."""
    if line_of is None:
        lines = [f"{where}: {_dotted(keys)}: {text}" for keys, text in problems]
    else:
        sorted_problems = sorted((line_of(keys), _dotted(keys), text) for keys, text in problems)
        lines = [f"{where}:{line}: {key}: {text}" for line, key, text in sorted_problems]
    more = [f"{where}: and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
    return "\n".join([*lines[:MOST_PROBLEMS], *more])


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known one, or all of them."""
    in_small_letters = {one.lower(): one for one in known}
    close = get_close_matches(name[:100].lower(), in_small_letters, n=1, cutoff=0.5)
    return f"did you mean {in_small_letters[close[0]]!r}?" if close else f"known are {', '.join(known)}"


def described(value: Any) -> str:
    """Return in a few words what a value from JSON or YAML is, for messages."""
    if isinstance(value, Mapping):
        return f"a mapping ({cut(', '.join(map(str, list(value)[:4])), 60)})" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        simple = all(one is None or isinstance(one, int | float | str) for one in value[:8])
        if value and simple and len(value) <= 8:
            return cut(json.dumps(value, ensure_ascii=False))
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return f"the text {cut(json.dumps(value, ensure_ascii=False))}"
    return cut(json.dumps(value, default=str))


def _problems(model: type[BaseModel], data: Any, found: Sequence[Any]) -> list[tuple[list[Any], str]]:
    """Return the keys and the text of each problem; alternatives of one value are joined."""
    wanted: dict[tuple[Any, ...], list[str]] = {}
    others: list[tuple[list[Any], str]] = []
    there: dict[tuple[Any, ...], Any] = {}
    for problem in found:
        keys, value = _followed(data, problem)
        if problem["type"] == "extra_forbidden":
            others.append((keys, f"unknown key; {nearest(str(keys[-1]), _keys_at(model, keys[:-1]))}"))
        elif problem["type"] == "missing":
            others.append((keys, "this key is required"))
        elif problem["type"] in ("value_error", "assertion_error"):  # raised by a validator of this package
            others.append((keys, str(problem["ctx"]["error"])))
        else:
            text = _WANTED.get(problem["type"], "another value")
            for name, limit in problem.get("ctx", {}).items():
                text = text.replace(f"{{{name}}}", f"{limit:g}" if isinstance(limit, float) else str(limit))
            there[tuple(keys)] = value
            wanted.setdefault(tuple(keys), []).append(text)
    for path, texts in wanted.items():
        others.append((list(path), f"{' or '.join(dict.fromkeys(texts))} is wanted, not {described(there[path])}"))
    return others


def _followed(data: Any, problem: Any) -> tuple[list[Any], Any]:
    """Return the keys that lead to a problem's value, without the names that pydantic gives to alternatives, and the value."""
    keys, value = [], data
    for number, key in enumerate(problem["loc"]):
        is_last = number == len(problem["loc"]) - 1
        if isinstance(value, Mapping) and (key in value or str(key) in map(str, value)):
            key = key if key in value else next(one for one in value if str(one) == str(key))
            value = value[key]
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        elif not (is_last and problem["type"] == "missing"):
            continue
        keys.append(key)
    return keys, value


def _dotted(keys: Sequence[Any]) -> str:
    return ".".join(cut(str(key)) for key in keys) or "the file"


def _keys_at(model: type[BaseModel], keys: Sequence[Any]) -> list[str]:
    for key in keys:
        if not isinstance(key, str) or key not in model.model_fields:  # an index of a list, a key of a mapping
            continue
        annotation = model.model_fields[key].annotation
        parts = (annotation, *get_args(annotation))
        # In Python 3.10 list[X] is an instance of type, but issubclass does not accept it.
        classes = [kind for kind in parts if isinstance(kind, type) and get_origin(kind) is None]
        inner = [kind for kind in classes if issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)
