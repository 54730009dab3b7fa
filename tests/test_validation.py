"""Files from elsewhere are read within limits, and what is wrong with them is said in the words of this package."""

import json
import os
import resource
from datetime import date
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import read_json, read_yaml_document
from nnunet_glims.validation import read_model


def read_yaml(path):
    return read_yaml_document(path).content


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{one}: &a{one} [{', '.join([f'*a{one - 1}'] * 9)}]\n" for one in range(1, 20)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{one}: &a{one} {{<<: [{', '.join([f'*a{one - 1}'] * 9)}]}}\n" for one in range(1, 20)
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=1, le=9)]
    size: float = 1.0
    name: str = "x"
    kind: Literal["fast", "slow"] = "fast"
    sure: bool = True
    numbers: Annotated[list[int], Field(min_length=2)] = [1, 2]
    pair: tuple[float, float] = (1, 1)
    either: int | list[int] = 1
    more: dict[str, int] = {}
    word: Annotated[str, Field(pattern=r"^\w+$")] = "x"
    left_out: int | None = None


class Outer(BaseModel):
    entries: list[Inner]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r":\d+: with its aliases it has more than 100,000 values"),
        (MERGE_BOMB, r":\d+: with its aliases it has more than 100,000 values"),
        (
            f"a: &a {'x' * 2000}\nb: [{', '.join(['*a'] * 2000)}]",
            ":2: with its aliases it has more than 1,048,576 characters",
        ),
        (f"a: &a {{{'x' * 900}: 1}}\nb: [{', '.join(['*a'] * 2000)}]", ":2: with its aliases it has .* characters"),
        ("a: &a [1, *a]", ":1: an alias stands inside of what it stands for"),
        ("[" * 100_000, ":1: lists and mappings are nested more than 50 levels deep"),
        ("{a: " * 50_000, ":1: lists and mappings are nested more than 50 levels deep"),
        ("? " * 2000, ":1: lists and mappings are nested more than 50 levels deep"),
        ("b: 1\na: 1\nc:\n  - {a: 2}\na: 3", ":5: a: this key stands in line 2 already"),
        ("c:\n- a: 1\n  a: 2", ":3: a: this key stands in line 2 already"),
        ("a:\n- 1\n- .inf", r":3: a\.1: a finite number is wanted, not inf"),
        ("a: !!python/object/apply:os.system [ls]", ":1: this is not YAML: could not determine a constructor"),
        ("a: 1\n---\na: 2", ":2: this is not YAML: .* another document"),
        ("a: [", ":1: this is not YAML"),
        ("? [a]\n: 1", ":1: a list or mapping stands for a key"),
        ("a: " + "9" * 5000, r":1: 9+… cannot be read as a number"),
    ],
)
def test_yaml_beyond_the_limits_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^{path}{message}") as error:
        read_yaml(path)
    assert len(str(error.value)) < 300 + len(str(path))


def test_yaml_is_read_as_version_1_2_has_it(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("ten: 010\nsmall: 1e-3\nword: no\ntime: 12:30\nday: 2024-01-02\nyes: true\nnothing:\n")
    wanted = {
        "ten": 10,
        "small": 1e-3,
        "word": "no",
        "time": "12:30",
        "day": "2024-01-02",
        "yes": True,
        "nothing": None,
    }
    assert read_yaml(path) == wanted


def test_aliases_and_merges_of_a_usual_size_work(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("one: &one {a: 1, b: 2}\ntwo: *one\nthree: {<<: *one, b: 3}\n")
    assert read_yaml(path) == {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 2}, "three": {"a": 1, "b": 3}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, ": lists and mappings are nested more than 50 levels deep"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, ": lists and mappings are nested more than 50 levels deep"),
        (b'{"a": 1,\n"b": [{"c": "}{", "d": 1,\n"d": 2}]}', ":3: d: this key stands in line 2 already"),
        (b'{"a":\n[1,\nNaN]}', r":3: a\.1: a finite number is wanted, not nan"),
        (b'{"a":\n[1, 1e999]}', r":2: a\.1: a finite number is wanted, not inf"),
        (b'{"a": 1,\n}', ":[12]: this is not JSON"),
        (b"", ":1: this is not JSON"),
        ('{"a": 1}'.encode("utf-16"), ": this text is in UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), ": this text is in UTF-16"),
        (b'{\n"a": "\xe9"}', ":2: this is no text in UTF-8"),
        (b"9" * 5000, ": this is not JSON"),
    ],
)
def test_json_beyond_the_limits_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    if content == b"9" * 5000 and isinstance(_int(content), int):
        pytest.skip("this Python reads numbers of any length")
    with pytest.raises(UsageError, match=f"^{path}{message}"):
        read_json(path)
    if b"\xff" not in content[:1]:
        with pytest.raises(ProcessingError, match=f"^{path}{message}"):
            read_json(path, ProcessingError)


def _int(digits):
    try:
        return int(digits)
    except ValueError:
        return None


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_infinities_are_read_where_they_are_allowed(tmp_path):
    (tmp_path / "summary.json").write_text('{"Dice": NaN}')
    assert str(read_json(tmp_path / "summary.json", nan_allowed=True)["Dice"]) == "nan"


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_large_file_is_refused_before_it_is_read(tmp_path, read):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="1,099,511,627,776 bytes"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file_is_named(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "this is a folder, not a file"),
        (tmp_path / "pipe", "this is a pipe or a device, not a file"),
        (tmp_path / "none.json", "there is no such file"),
        (tmp_path / "pipe/none.json", "there is no such file"),
    ):
        with pytest.raises(UsageError, match=f"^{path}: {message}"):
            read(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"count": True}, "count: a whole number is wanted, not true"),
        ({"count": 1.0}, "count: a whole number is wanted, not 1.0"),
        ({"count": "1"}, 'count: a whole number is wanted, not the text "1"'),
        ({"count": None}, "count: a whole number is wanted, not null"),
        ({"count": 0}, "count: a number of at least 1 is wanted, not 0"),
        ({"count": 10}, "count: a number of at most 9 is wanted, not 10"),
        ({}, "count: this key is required"),
        ({"size": "big"}, 'size: a number is wanted, not the text "big"'),
        ({"name": 3}, "name: a text is wanted, not 3"),
        ({"name": ["a", "b"]}, 'name: a text is wanted, not ["a", "b"]'),
        ({"kind": "quick"}, "kind: 'fast' or 'slow' is wanted, not the text \"quick\""),
        ({"sure": "yes"}, 'sure: true or false is wanted, not the text "yes"'),
        ({"numbers": [1]}, "numbers: at least 2 of them is wanted, not [1]"),
        ({"numbers": {"a": 1}}, "numbers: a list is wanted, not a mapping (a)"),
        ({"numbers": [1, [2]]}, "numbers.1: a whole number is wanted, not [2]"),
        ({"either": "x"}, 'either: a whole number or a list is wanted, not the text "x"'),
        ({"more": []}, "more: a mapping of keys to values is wanted, not an empty list"),
        ({"more": {"a b": "x"}}, 'more.a b: a whole number is wanted, not the text "x"'),
        ({"left_out": "x"}, 'left_out: a whole number is wanted, not the text "x"'),
        ({"nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
        ({"word": "../\x1b[31m"}, 'word: a text of the form ^\\w+$ is wanted, not the text "../\\u001b[31m"'),
        ({"word": " " * 10_000}, f'word: a text of the form ^\\w+$ is wanted, not the text "{" " * 79}…'),
    ],
)
def test_what_is_there_and_what_is_wanted_is_said(tmp_path, entry, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"entries": [{"count": 1}, {"count": 1, **entry} if entry else {}]}, indent=1))
    with pytest.raises(UsageError) as error:
        read_model(Outer, path)
    assert f"entries.1.{message}" in str(error.value)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"entries"', "true"])
@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_a_file_of_another_kind_is_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ProcessingError, match=f"^{path}:1: the file: a mapping of keys to values is wanted, not "):
        read_model(Outer, path, ProcessingError, is_yaml=name.endswith("yaml"))


def test_all_problems_are_listed_by_their_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("entries:\n- count: 1\n  nmae: x\n- size: [1]\n- count: 10\n  name: null\n")
    with pytest.raises(UsageError) as error:
        read_model(Outer, path, is_yaml=True)
    assert [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()] == [
        "3: entries.0.nmae: unknown key; did you mean 'name'?",
        "4: entries.1.count: this key is required",
        "4: entries.1.size: a number is wanted, not [1]",
        "5: entries.2.count: a number of at most 9 is wanted, not 10",
        "6: entries.2.name: a text is wanted, not null",
    ]


def test_a_thousand_problems_make_no_thousand_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"entries": [{}] * 1000}))
    with pytest.raises(UsageError, match="and 980 more") as error:
        read_model(Outer, path)
    assert len(str(error.value).splitlines()) == 21


def test_half_a_character_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"entries": [{"count": 1, "name": "\\ud800"}]}')
    with pytest.raises(UsageError, match="valid Unicode"):
        read_model(Outer, path)


@pytest.mark.parametrize("kind", [date, UUID, Annotated[float, Field(multiple_of=2)], bytes, type])
def test_no_problem_is_described_in_the_words_of_pydantic(tmp_path, kind):
    model = create_model("Odd", value=(kind, ...))
    path = tmp_path / "a.json"
    path.write_text('{"value": 3.5}')
    with pytest.raises(UsageError, match=r"value: .* is wanted, not 3\.5$") as error:
        read_model(model, path)
    assert "nput" not in str(error.value) and "hould" not in str(error.value)
