"""The reading layer: what is beyond its limits is refused quickly, in one short message with file and key."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from magicdec.costmodel.base.csv_text import read_csv
from magicdec.costmodel.base.errors import MAX_MESSAGE_LENGTH, InputError, Problem
from magicdec.costmodel.base.files import read_text
from magicdec.costmodel.base.json_text import json_line, load_json, load_json_object
from magicdec.costmodel.base.limits import MAX_TEXT_LENGTH, MAX_VALUES
from magicdec.costmodel.base.yaml_text import load_mapping, load_shipped, render_yaml


def refusal(read: Callable[[], object], seconds: float = 5.0) -> str:
    """The message of an input that is refused within a time."""
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        read()
    assert time.process_time() - began < seconds
    message = str(caught.value)
    assert len(message) <= MAX_MESSAGE_LENGTH
    assert message.replace("\n", "").isprintable()
    return message


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "an alias": ("x: {y: &one [1]}", "f.yaml: line 1: x.y: expected YAML without anchors and aliases, found 'one'"),
    "aliases that stand for gigabytes": (LAUGHS, "f.yaml: line 1: a: expected YAML without anchors"),
    "a mapping that holds itself": ("a: &a {b: *a}", "line 1: a: expected YAML without anchors"),
    "a tag with a bad number": ("peak:\n  num_sms: !!float abc", "f.yaml: line 2: peak.num_sms: expected YAML without tags"),
    "a tag that runs code": ("a: !!python/object/apply:os.system [true]", "line 1: a: expected YAML without tags"),
    "a tagged date": ("a: [1, !!timestamp now]", "line 1: a.1: expected YAML without tags"),
    "a deep list": ("a: " + "[" * 500 + "]" * 500, "at most 32 levels of nesting"),
    "a list deeper than the parser goes": ("[" * 100_000, "f.yaml: "),
    "deep mappings": ("{a: " * 100_000, "at most 32 levels of nesting"),
    "deep block lists": ("- " * 100_000, "at most 32 levels of nesting"),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key 'a' is given twice"),
    "a list as a key": ("? [1]\n: 2", "a key that is no text"),
    "a number as a key": ("a: {1: 2}", "f.yaml: a: expected keys that are texts, found 1 (int)"),
    "null as a key": ("a: {null: 2}", "f.yaml: a: expected keys that are texts, found None"),
    "infinity": ("a: {b: .inf}", "f.yaml: a.b: expected a finite number, found inf"),
    "no number": ("a: .nan", "f.yaml: a: expected a finite number, found nan"),
    "a number beyond float64": ("a: 1.0e+400", "f.yaml: a: expected a finite number"),
    "a number beyond 64 bits": ("a: {b: 9223372036854775808}", "f.yaml: a.b: expected a whole number of at most 64 bits"),
    "a NUL": ('a: "x\\0y"', "f.yaml: a: expected Unicode text without NUL"),
    "an unpaired surrogate": ('a: "\\ud800"', "invalid Unicode character"),
    "a control character": ("a: \x01", "control characters are not allowed"),
    "a very long text": ("a: " + "x" * (MAX_TEXT_LENGTH + 1), f"f.yaml: line 1: a: expected a text of at most {MAX_TEXT_LENGTH:,}"),
    "more values than any plan": ("a: [" + "1," * MAX_VALUES + "1]", "at most 200,000 values"),
    "nothing": ("", "f.yaml: expected a plan, found NoneType"),
    "two documents": ("a: 1\n---\nb: 2", "in YAML"),
}


@pytest.mark.parametrize(("text", "message"), YAML.values(), ids=YAML)
def test_yaml_beyond_what_a_file_may_hold_is_refused(text: str, message: str) -> None:
    assert message in refusal(lambda: load_mapping(text, "f.yaml", "a plan"))


@pytest.mark.parametrize("written", ["2001-02-30", "2001-01-01 25:61:61", "0x_", "0b_", "._", "1e3", "9" * 5000, "1:60:60", "="])
def test_a_scalar_that_is_no_number_stays_text(written: str) -> None:
    assert load_mapping(f"a: {written}", "f.yaml", "a plan") == {"a": written}


def test_sixty_thousand_keys_are_read_in_seconds() -> None:
    keys = {f"key{number}": number for number in range(60_000)}
    began = time.process_time()
    assert load_mapping("\n".join(f"{key}: {value}" for key, value in keys.items()), "f.yaml", "a plan") == keys
    assert load_json(json.dumps(keys), "f.json", "a plan") == keys
    assert time.process_time() - began < 5


def test_what_is_written_is_read_again_without_aliases() -> None:
    shared = [1.5, "two", None, True]
    document = {"a": shared, "b": {"c": shared}, "d": "2001-01-01"}
    text = render_yaml(document)
    assert load_mapping(text, "f.yaml", "a plan") == load_shipped(text) == document


JSON = {
    "deep lists": ("[" * 100_000, "nesting"),
    "deep objects": ('{"a":' * 100_000, "nesting"),
    "lists deeper than documents are": ("[" * 40 + "]" * 40, "at most 32 levels of nesting"),
    "no number": ('{"a": {"b": NaN}}', "f.json: a.b: expected a finite number, found nan"),
    "infinity": ('{"a": [1, Infinity]}', "f.json: a.1: expected a finite number, found inf"),
    "a number beyond float64": ('{"a": 1e400}', "f.json: a: expected a finite number, found inf"),
    "a number beyond 64 bits": ('{"a": 9223372036854775808}', "f.json: a: expected a whole number of at most 64 bits"),
    "five thousand digits": ('{"a": ' + "9" * 5000 + "}", "f.json: a: expected a whole number of at most 64 bits"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
    "an unpaired surrogate": ('{"a": "\\ud800"}', "f.json: a: expected Unicode text"),
    "an unpaired surrogate in a key": ('{"\\udfff": 1}', "expected Unicode text"),
    "a NUL": ('{"a": "\\u0000"}', "f.json: a: expected Unicode text without NUL"),
    "a very long text": (json.dumps({"a": "x" * (MAX_TEXT_LENGTH + 1)}), "f.json: a: expected a text of at most"),
    "half an object": ('{"a": [1, 2}', "as JSON"),
    "nothing": ("", "as JSON"),
}


@pytest.mark.parametrize(("text", "message"), JSON.values(), ids=JSON)
def test_json_beyond_what_a_file_may_hold_is_refused(text: str, message: str) -> None:
    assert message in refusal(lambda: load_json(text, "f.json", "a config"))


def test_numbers_that_json_does_not_have_are_null_where_a_file_of_others_may_hold_them() -> None:
    assert load_json('{"a": [NaN, -Infinity, 1e999]}', "f.json", "a config", finite=False) == {"a": [None, None, None]}


def test_json_that_is_no_object_is_refused() -> None:
    assert "as a JSON object, found list" in refusal(lambda: load_json_object("[1]", "f.json", "a config"))


def test_a_line_of_json_is_one_line_for_every_reader() -> None:
    value = {"id": "a\u2028b\u2029c\x85d\ne", "text": "naïve 模型"}
    line = json_line(value)
    assert len(line.splitlines()) == 1
    assert "模型" in line
    assert json.loads(line) == value


CSV = {
    "too few cells": ("a,b\n1,2\n3\n", "line 3: expected 2 cells, one for each column, found 1"),
    "too many cells": ("a,b\n1,2,3\n", "line 2: expected 2 cells"),
    "a column twice": ("a,b,a\n1,2,3\n", "a: expected every column once"),
    "a column without a name": ("a,b,\n1,2,3\n", "column 3: expected a printable name"),
    "a NUL": ("a,b\n1,\0\n", "line 2: expected text, found a NUL character"),
    "a line separator": ("a,b\n1,x\u2028y\n", "line 2: b: expected text without control characters and line separators"),
    "a vertical tab": ('a,b\n1,"x\x0by"\n', "line 2: b: expected text without control characters"),
    "an escape sequence": ("a,b\n1,\x1b[31mred\n", "line 2: b: expected text without control characters"),
    "an open quote": ('a,b\n1,"x\n', "CSV"),
    "a cell without end": ("a,b\n1," + "x" * 200_000 + "\n", "field larger than field limit"),
    "a missing column": ("a,c\n1,2\n", "b: expected a column of this name, found a, c"),
    "no rows": ("a,b\n", "found no row"),
    "nothing": ("", "found nothing"),
}


@pytest.mark.parametrize(("text", "message"), CSV.values(), ids=CSV)
def test_csv_that_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "f.csv"
    file.write_text(text, encoding="utf-8")
    found = refusal(lambda: read_csv(str(file), "requests", ("a", "b")))
    assert message in found
    assert str(file) in found


def test_csv_rows_come_with_their_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text('\ufeffa,b\r\n1,"two\nlines"\r\n\r\n3,4\r\n', encoding="utf-8")
    assert read_csv(str(file), "requests") == (["a", "b"], [(3, {"a": "1", "b": "two\nlines"}), (5, {"a": "3", "b": "4"})])


def test_an_endless_file_is_refused(tmp_path: Path) -> None:
    assert "a plan file of at most 4 MiB" in refusal(lambda: read_text("/dev/zero", "plan file"))


@pytest.mark.parametrize("path", ["a\0b.yaml", "x" * 5000, "/proc/self/mem"])
def test_a_path_that_cannot_be_read_is_refused(path: str) -> None:
    assert "expected a readable plan file" in refusal(lambda: read_text(path, "plan file"))


def test_a_message_is_short_and_printable_whatever_it_is_about() -> None:
    problems = [Problem("f\x1b[31m", f"key\u2028{number}", "a number", "\0" * 10**6) for number in range(10**4)]
    error = InputError(*problems)
    assert len(error.problems) == 10**4
    assert len(str(error)) <= MAX_MESSAGE_LENGTH + 40
    assert str(error).endswith("more problems")
    assert str(error).replace("\n", "").isprintable()
