"""A long job tells how far it is, also where it does nothing but wait."""

from __future__ import annotations

import re
import sys
import time

import pytest

from magicdec.render import progress
from magicdec.render.progress import Reporter


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.01)
    monkeypatch.setattr(progress, "LINE_S", 0.05)


def test_a_step_that_tells_nothing_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter() as reporter, reporter.bar(0, "planning", "step"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 8, "every 0.05 s, more or less"
    assert set(lines) == {"planning: for 0 s"}


def test_a_bar_tells_what_is_done_and_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter() as reporter, reporter.bar(10, "reading prompts", "prompt") as advance:
        advance(4)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"reading prompts: 4 of 10 prompts, \d+ s left", line) for line in lines)


def test_of_several_bars_the_one_that_moved_last_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter() as reporter, reporter.bar(2, "reading", "prompt") as read, reporter.bar(2, "decoding", "token") as decode:
        time.sleep(0.1)
        read(2)
        decode(1)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading: 0 of 2")
    assert lines[-1].startswith("decoding: 1 of 2")


def test_sentences_are_told_by_whoever_hears_them_and_count_as_output(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    with Reporter(heard.append) as reporter, reporter.bar(0, "planning", "step"):
        for _ in range(20):
            reporter.say("a plan")
            time.sleep(0.01)
    assert heard == ["a plan"] * 20
    assert capsys.readouterr().err == ""


def test_nothing_is_told_after_the_job_even_if_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    with pytest.raises(ValueError, match="broken"), reporter, reporter.bar(0, "planning", "step"):
        raise ValueError("broken")
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
    assert not reporter._thread.is_alive()


def test_on_a_terminal_bars_are_refreshed_instead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Reporter() as reporter, reporter.bar(10, "reading prompts", "prompt") as advance:
        advance(4)
        time.sleep(0.2)
    shown = capsys.readouterr().err
    assert "reading prompts" in shown
    assert " of 10" not in shown
