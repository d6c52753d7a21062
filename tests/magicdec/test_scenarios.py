"""A CSV file in, the same with predictions out."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import main

from magicdec.results.scenarios import ADDED_COLUMNS

TIMINGS = Path(__file__).parents[2] / "costmodel" / "published" / "magicdec_timings.csv"


def priced(source: Path, folder: Path) -> list[dict[str, str]]:
    out = folder / "out.csv"
    result = CliRunner().invoke(main, ["predict", "--scenarios", str(source), "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(out.read_text().splitlines()))


def test_every_published_row_is_priced_and_keeps_its_columns(tmp_path: Path) -> None:
    given = list(csv.DictReader(TIMINGS.read_text().splitlines()))
    rows = priced(TIMINGS, tmp_path)
    assert len(rows) == len(given)
    for row, before in zip(rows, given, strict=True):
        assert {key: row[key] for key in before} == before
        assert set(ADDED_COLUMNS) <= set(row)
        assert row["error"] == ""
        assert float(row["predicted_mean_acceptance_length"]) == float(before["mean_acceptance_length"])
        assert float(row["predicted_speedup"]) == pytest.approx(float(before["measured_speedup"]), rel=0.09)
        assert row["bound"] in ("kv", "communication", "weights", "compute", "overhead")


def test_a_row_that_cannot_be_priced_says_why_and_the_others_are_priced(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(
        "hardware,target,batch_size,context_len,gamma,draft_kind,mine\n"
        "h100-sxm,llama-3.1-8b,8,32000,,,a\n"
        "h100-sxm,no-such-model,8,32000,,,b\n"
        "h100-sxm,llama-3.1-8b,0,32000,,,c\n"
        "h100-sxm,llama-3.1-8b,8,32000,x,,d\n"
        "h100-sxm,llama-3.1-8b,8,32000,2,model,e\n"
        "h100-sxm,llama-3.1-8b,8,32000,,none,f\n"
    )
    rows = priced(source, tmp_path)
    assert [row["mine"] for row in rows] == ["a", "b", "c", "d", "e", "f"]
    assert [bool(row["predicted_speedup"]) for row in rows] == [True, False, False, False, False, True]
    for row, word in zip(rows[1:5], ("no-such-model", "batch_size", "gamma", "draft_model"), strict=True):
        assert word in row["error"]
    assert float(rows[5]["predicted_speedup"]) == 1.0


@pytest.mark.parametrize(("text", "expected"), [("", "a row for each of the scenarios"), ("a,b\n1,2\n", "hardware, target")])
def test_a_file_without_scenarios_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(text)
    result = CliRunner().invoke(main, ["predict", "--scenarios", str(source)], catch_exceptions=False)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_rows_are_json_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["predict", "--scenarios", str(TIMINGS), "--json"], catch_exceptions=False)
    assert len(json.loads(result.stdout)) == 43
