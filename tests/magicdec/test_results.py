"""Results: views for people and for programs, none of which gives its insides away."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import magicdec
from magicdec.costmodel.calibration.published_rows import IN_SAMPLE, NOT_FITTED, Comparison
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.inputs.names import find_model
from magicdec.results.base import Result
from magicdec.results.catalog import ModelList
from magicdec.results.report import ReportFiles

WHERE: dict[str, Any] = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "num_gpus": 8}
POINT = {**WHERE, "batch_size": 64, "context_len": 32_000}
COMPARISONS = [
    Comparison("l4", "m", quantity, split, "1 x 1", 1.0, 1.1)
    for quantity, split in (("target step", IN_SAMPLE), ("best gamma", NOT_FITTED), ("speedup at the best gamma", NOT_FITTED))
]


def scenarios(folder: Path) -> Path:
    file = folder / "in.csv"
    file.write_text("hardware,target,batch_size,context_len\nh100-sxm,llama-3.1-8b,8,32000\nh100-sxm,no-such-model,8,32000\n")
    return file


MAKERS: dict[str, Callable[[Path], Result]] = {
    "point": lambda folder: magicdec.predict(**POINT),
    "point without speculation": lambda folder: magicdec.predict(**POINT, draft="none"),
    "point of unknown acceptance": lambda folder: magicdec.predict(**POINT, draft="ngram"),
    "grid": lambda folder: magicdec.predict(**{**POINT, "batch_size": [[1], [64]]}, gamma=[1, 2, 3]),
    "plan": lambda folder: magicdec.plan(**POINT, draft=("self", "ngram")),
    "plan with a map": lambda folder: magicdec.plan(**POINT, sweep=True, gpu_price=2.0),
    "map": lambda folder: magicdec.explore(**WHERE),
    "regimes": lambda folder: magicdec.regimes(**WHERE, small_draft="llama-3.2-1b"),
    "export": lambda folder: magicdec.export(magicdec.plan(**POINT, kv_policy="streaming_llm"), "vllm-vegas"),
    "scenarios": lambda folder: magicdec.predict_scenarios(scenarios(folder)),
    "report": lambda folder: ReportFiles(folder / "index.html", (folder / "index.html", folder / "figure.png")),
    "calibration": lambda folder: magicdec.calibrate(from_published="h100-sxm"),
    "accuracy": lambda folder: magicdec.validate(),
    "profiles": lambda folder: magicdec.profiles(),
    "models": lambda folder: magicdec.models(),
    "environment": lambda folder: magicdec.environment(),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """One result of every kind; published rows take seconds, so three comparisons stand for them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("magicdec.api.validate.published_comparisons", lambda: COMPARISONS)
        return {name: make(tmp_path_factory.mktemp("results")) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def result(request: pytest.FixtureRequest, results: dict[str, Result]) -> Result:
    return results[request.param]


def views(result: Result) -> tuple[object, ...]:
    return result.to_dict(), result.document(), [dict(row) for row in result.rows()], str(result), repr(result)


def spoil(value: object) -> None:
    """Empty every mapping and list, from the inside out."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            spoil(inner)
        value.clear()


def test_repr_is_one_line_with_the_headline(result: Result) -> None:
    assert repr(result) == f"<{type(result).__name__}: {result.headline}>"
    assert "\n" not in repr(result)
    assert result.headline


def test_the_document_is_json_without_nan(result: Result) -> None:
    for document in (result.to_dict(), result.document()):
        assert json.loads(json.dumps(document, allow_nan=False))
    assert isinstance(result.to_dict(), dict)
    assert not re.search(r"\bnan\b", str(result))


def test_a_changed_view_changes_nothing_else(result: Result) -> None:
    """Also nothing global: documents once handed out the insides of frozen dataclasses."""
    before = json.dumps(views(result))
    spoil(result.to_dict())
    spoil(result.document())
    for row in result.rows():
        spoil(row)
    assert json.dumps(views(result)) == before


def test_the_strategy_of_a_document_is_not_the_global_one(results: dict[str, Result]) -> None:
    document: dict[str, Any] = results["point without speculation"].to_dict()
    document["strategy"].pop("gamma")
    document["strategy"]["draft_kind"] = "self"
    assert Strategy() == NO_SPECULATION
    again: dict[str, Any] = magicdec.predict(**POINT, draft="none").to_dict()
    assert again["strategy"]["draft_kind"] == "none"
    assert again["strategy"]["gamma"] == 0


def test_rows_have_the_same_keys_and_become_a_data_frame(result: Result) -> None:
    rows, frame = result.rows(), result.to_dataframe()
    assert rows
    assert all(list(row) == list(rows[0]) for row in rows)
    assert list(frame.columns) == list(rows[0])
    assert len(frame) == len(rows)
    for row, (_, found) in zip(rows, frame.iterrows(), strict=True):
        for name, value in row.items():
            assert found[name] == value or (value is None and (found[name] is None or math.isnan(found[name])))


def test_html_is_a_table_of_the_rows(result: Result) -> None:
    page = result._repr_html_()
    assert page.startswith("<p>")
    assert page.count("<tr>") == 1 + len(result.rows())
    assert page.count("<th>") == len(result.rows()[0])
    assert not re.search(r"<(?!/?(p|table|thead|tbody|tr|th|td)>)", page)


def test_html_escapes_names() -> None:
    config = find_model("llama-3.1-8b").config
    page = ModelList({"<script>alert(1)</script>": config})._repr_html_()
    assert "<td>&lt;script&gt;" in page
    headline = ReportFiles(Path("<b>bold</b>.html"), (Path("<b>bold</b>.html"),))._repr_html_()
    assert "<b>" not in headline
    assert headline.startswith("<p>&lt;b&gt;")


def test_a_grid_has_its_points_in_order(results: dict[str, Result]) -> None:
    rows = results["grid"].rows()
    assert [(row["batch_size"], row["gamma"]) for row in rows] == [(b, g) for b in (1, 64) for g in (1, 2, 3)]
    document: dict[str, Any] = results["grid"].to_dict()
    assert document["shape"] == [2, 3]
    alone = magicdec.predict(**POINT, gamma=2)
    assert document["points"][4] == alone.to_dict()
    assert "2 x 3 points" in results["grid"].headline


def test_a_plan_says_which_of_its_two_speedups_is_which() -> None:
    """Where reading prompts takes most of the time, decoding twice as fast is a few percent end to end."""
    found = magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=64, context_len=32_000)
    served = found.plan.serving
    assert served is not None
    decoding = found.prediction.predicted_speedup
    whole = served.predicted_throughput_tokens_per_s / served.predicted_plain_throughput_tokens_per_s
    assert decoding > whole + 0.2
    verdict = " ".join(str(found).split("\n\n")[0].split())
    assert verdict.startswith(f"Speculate: {decoding:.2f}x faster decode (likely ")
    assert f"end to end {whole:.2f}x" in verdict
    assert f"({whole:.2f}x); prefill takes {served.prefill_share:.0%} of the time" in " ".join(str(found).split())
    assert f"decodes {decoding:.2f}x as fast" in found.headline
