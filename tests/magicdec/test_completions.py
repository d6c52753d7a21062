"""The output file of a run: continued, never overwritten, and refused when it is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.files.completions import Completion, CompletionFile

DIGESTS = {"a": "1111", "b": "2222", "c": "3333"}
LINES = [json.dumps({"id": name, "text": f"text {name} é", "num_tokens": 3, "digest": DIGESTS[name]}) + "\n" for name in "abc"]


def refusal(file: Path) -> str:
    before = file.read_bytes()
    with pytest.raises(InputError) as caught:
        CompletionFile(str(file), DIGESTS)
    assert file.read_bytes() == before, "what is refused is left as it was"
    return str(caught.value)


def test_completions_are_appended_and_remembered(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "out.jsonl"
    with CompletionFile(str(file), DIGESTS) as first:
        assert first.present == set()
        first.append(Completion("b", "text b é", 3))
        assert file.read_text(encoding="utf-8").count("\n") == 1, "on disk before the file is closed"
    with CompletionFile(str(file), DIGESTS) as second:
        assert second.present == {"b"}
        second.append(Completion("b", "again", 1))
        second.append(Completion("a", "text a é", 3))
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [json.loads(LINES[i]) for i in (1, 0)]


@pytest.mark.parametrize("kept", range(len(LINES[2].encode())))
def test_a_last_line_torn_anywhere_is_dropped(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "out.jsonl"
    file.write_bytes((LINES[0] + LINES[1]).encode() + LINES[2].encode()[:kept])
    with CompletionFile(str(file), DIGESTS) as outputs:
        assert outputs.present == {"a", "b"}
        outputs.append(Completion("c", "text c", 3))
    with CompletionFile(str(file), DIGESTS) as outputs:
        assert outputs.present == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LINES[0].replace("1111", "9999"), "made with another model, prompt, limit, stop string or sampling"),
        (LINES[0].replace('"a"', '"z"'), "one of these prompts"),
        (LINES[0] + LINES[0], "every prompt once"),
        ("my notes\n", "magicdec run"),
        ("my notes without a line end", "magicdec run"),
        ('{"id": "a"}\n', "magicdec run"),
        ("[1]\n", "magicdec run"),
        ("\xff\xfe\n", "magicdec run"),
    ],
)
def test_a_file_of_other_settings_or_none_of_ours_is_refused_with_what_to_do(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "out.jsonl"
    file.write_bytes(content.encode("latin-1" if "\xff" in content else "utf-8"))
    message = refusal(file)
    assert expected in message
    assert "name another file with `output`, or remove this one" in message


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with CompletionFile(str(file), DIGESTS) as first:
        first.append(Completion("a", "text a é", 3))
        assert "no other run is writing" in refusal(file)
    with CompletionFile(str(file), DIGESTS) as second:
        assert second.present == {"a"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_message_that_says_what_is_kept() -> None:
    with pytest.raises(InputError) as caught, CompletionFile("/dev/full", DIGESTS) as outputs:
        outputs.append(Completion("a", "text", 1))
    assert "/dev/full: expected room for the completion of prompt a; the 0 before it are kept" in str(caught.value)
    assert "No space left" in str(caught.value)


def test_standard_output_is_not_continued_and_nowhere_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    CompletionFile("-", DIGESTS).append(Completion("a", "text", 1))
    CompletionFile(None, DIGESTS).append(Completion("b", "text", 1))
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["a"]
