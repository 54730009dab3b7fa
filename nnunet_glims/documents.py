"""Parse JSON and YAML within limits, and find the line of a value.

A file from elsewhere may be nested so deeply that Python's stack overflows, or grow to gigabytes by YAML's aliases. Both
are refused before anything is built from them. So are keys that stand twice, of which parsers take the last silently, and
numbers that are not finite. YAML is read as version 1.2 has it: `010` is ten, `1e-3` is a number, `no` and `12:30` are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, ClassVar

import yaml

from nnunet_glims.errors import UsageError, UserError, cut

MOST_BYTES_OF_JSON = 64 * 2**20
"""The largest tables of results that are known, nnU-Net's of 1,200 cases with 117 labels, have 40 MB."""
MOST_BYTES_OF_YAML = 2**18
"""A comparison of 100 entries has 10 kB."""
MOST_NODES_OF_YAML = 100_000
"""Largest number of values, where what an alias stands for counts each time."""
MOST_CHARACTERS_OF_YAML = 2**20
"""Largest number of characters in all keys and values, where what an alias stands for counts each time."""
DEEPEST = 50
"""Largest number of lists and mappings inside each other. nnU-Net's plans have 6."""

_TOO_DEEP = f"lists and mappings are nested more than {DEEPEST} levels deep"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\],:"]+')


@dataclass(frozen=True)
class Document:
    """The content of a JSON or YAML file.

    Attributes:
        content: dicts, lists, texts, numbers, booleans and None.
        compose: returns the nodes that the content was made from.
    """

    content: Any
    compose: Callable[[], yaml.Node | None]

    @cached_property
    def _root(self) -> yaml.Node | None:
        return self.compose()

    def line_of(self, keys: Sequence[Any]) -> int:
        """Return the line, counted from 1, of the value at a path of keys and list indices, or of its nearest parent."""
        node = self._root
        line = 1 if node is None else node.start_mark.line + 1
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == str(key)]
                if not found:
                    return line
                line, node = found[-1][0].start_mark.line + 1, found[-1][1]  # after YAML's << the later one counts
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
            else:
                return line
        return line


def parse_json(text: str, where: str, error: type[UserError] = UsageError, nan_allowed: bool = False) -> Document:
    """Parse JSON.

    Args:
        text: the content of a file.
        where: how messages name the file.
        error: class of the errors.
        nan_allowed: whether NaN and Infinity are allowed, which JSON does not have, but Python writes.

    Raises:
        UserError: of the class `error`, with the line: this is not JSON, is nested too deeply, has a key twice in one
            object, or a number that is not finite.
    """
    has_key_twice = False

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal has_key_twice
        collected = dict(pairs)
        has_key_twice |= len(collected) < len(pairs)
        return collected

    try:
        content = json.loads(text, object_pairs_hook=collect)
    except RecursionError:
        raise error(f"{where}: {_TOO_DEEP}") from None
    except json.JSONDecodeError as problem:
        raise error(f"{where}:{problem.lineno}: this is not JSON: {cut(problem.msg)}") from None
    except ValueError as problem:  # a number of too many digits
        raise error(f"{where}: this is not JSON: {cut(str(problem))}") from None
    document = Document(content, lambda: _compose_json(text))
    _check_content(document, where, error, nan_allowed)
    if has_key_twice:
        _check_keys_once(document._root, where, error)
    return document


def parse_yaml(text: str, where: str, error: type[UserError] = UsageError) -> Document:
    """Parse YAML.

    Args:
        text: the content of a file.
        where: how messages name the file.
        error: class of the errors.

    Raises:
        UserError: of the class `error`, with the line: this is not YAML, is nested too deeply, grows too large by its
            aliases, has a key twice in one mapping, or a number that is not finite.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_keys_once(node, where, error)
        content = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        what = cut(getattr(problem, "problem", None) or str(problem).splitlines()[0], 160)
        raise error(f"{where}{line}: {'' if isinstance(problem, _Refused) else 'this is not YAML: '}{what}") from None
    finally:
        if loader is not None:
            loader.dispose()
    document = Document(content, lambda: node)
    _check_content(document, where, error, nan_allowed=False)
    return document


def _check_content(document: Document, where: str, error: type[UserError], nan_allowed: bool) -> None:
    level = [document.content]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, float) and not nan_allowed and not isfinite(value):
                keys = _keys_of_not_finite(document.content)
                name = ".".join(map(str, keys)) or "the file"
                raise error(f"{where}:{document.line_of(keys)}: {cut(name)}: a finite number is wanted, not {value}")
        level = inner
    if level:
        raise error(f"{where}: {_TOO_DEEP}")


def _keys_of_not_finite(content: Any) -> list[Any]:
    """Return the keys and list indices that lead to the number that `_check_content` has found."""
    level: list[tuple[list[Any], Any]] = [([], content)]
    for keys, value in level:  # grows meanwhile
        if isinstance(value, float) and not isfinite(value):
            return keys
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            level.extend(([*keys, key], one) for key, one in inner)
    return []


def _check_keys_once(root: yaml.Node | None, where: str, error: type[UserError]) -> None:
    """Raise an error where a key is given twice, of which parsers take the last silently, or is not a text or number."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # by an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(reversed(node.value))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise error(f"{where}:{line}: a list or mapping stands for a key: keys must be texts")
                if key.value in lines:
                    raise error(f"{where}:{line}: {cut(key.value)}: this key stands in line {lines[key.value]} already")
                lines[key.value] = line
            nodes.extend(value for _, value in reversed(node.value))


def _compose_json(text: str) -> yaml.Node | None:
    """Return valid JSON as nodes with lines."""
    root: yaml.Node | None = None
    opened: list[yaml.CollectionNode] = []
    keys: list[yaml.Node | None] = []
    line = last = 0
    for match in _TOKEN.finditer(text):
        token, start = match[0], match.start()
        line, last = line + text.count("\n", last, start), start
        if token in "}]":
            opened.pop()
            keys.pop()
            continue
        mark = yaml.Mark("", start, line, 0, None, None)
        node: yaml.Node
        if token in "{[":
            node = (yaml.MappingNode if token == "{" else yaml.SequenceNode)("", [], mark)
        else:
            node = yaml.ScalarNode("", json.loads(token) if token[0] == '"' else token, mark)
        if not opened:
            root = node
        elif isinstance(opened[-1], yaml.SequenceNode):
            opened[-1].value.append(node)
        elif keys[-1] is None:
            keys[-1] = node
        else:
            opened[-1].value.append((keys[-1], node))
            keys[-1] = None
        if isinstance(node, yaml.CollectionNode):
            opened.append(node)
            keys.append(None)
    return root


class _Refused(yaml.MarkedYAMLError):
    """YAML that the limits do not allow."""


def _refused(problem: str, mark: yaml.Mark) -> _Refused:
    return _Refused(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """A loader of YAML 1.2's core schema that counts what it builds."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("null", "bool", "str", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._nodes = self._characters = 0
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        nodes, characters = self._nodes, self._characters
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refused(_TOO_DEEP, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            self._nodes += 1
            self._characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self._sizes[id(node)] = self._nodes - nodes, self._characters - characters
        elif id(node) not in self._sizes:
            raise _refused("an alias stands inside of what it stands for", mark)
        else:
            self._nodes += self._sizes[id(node)][0]
            self._characters += self._sizes[id(node)][1]
        if self._nodes > MOST_NODES_OF_YAML:
            raise _refused(f"with its aliases it has more than {MOST_NODES_OF_YAML:,} values", mark)
        if self._characters > MOST_CHARACTERS_OF_YAML:
            raise _refused(f"with its aliases it has more than {MOST_CHARACTERS_OF_YAML:,} characters", mark)
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        is_whole = node.tag.endswith(":int")
        text = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
        try:
            return int(text) if is_whole else float(text)
        except ValueError:  # also for too many digits
            raise _refused(f"{cut(node.value)} cannot be read as a number", node.start_mark) from None


for _kind, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), _first)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
