"""`predict`, `report`, `calibrate` and the listings on the command line: their text, their JSON, their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import WHERE, answered, call, shown

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile_file import load_profile

PREDICT = ["predict", *WHERE, "--batch-size", "128", "--context-len", "32k", "--gamma", "2"]


def test_predict_prints_breakdown_bound_speedup_and_verdict() -> None:
    words = shown(*PREDICT, "--kv-policy", "streaming_llm", "--kv-budget", "512", "--draft", "self", "--tensor-parallel", "8")
    for word in ("target", "draft", "verify", "communication", "bottleneck        kv", "tokens per round", "TPOT", "Speculate:"):
        assert word in words


def test_predict_json_is_one_document_with_the_speedup_on_top() -> None:
    result = call(*PREDICT, "--json")
    document = json.loads(result.stdout)
    assert document["predicted_speedup_low"] < document["predicted_speedup"] < document["predicted_speedup_high"]
    assert document["bound"] == "kv"
    parts = document["breakdown"]["target"]
    assert sum(parts.values()) == pytest.approx(document["predicted_target_step_s"])
    assert document["strategy"]["kv_budget"] == 512
    assert "Speculate" in result.stderr


def test_predict_without_a_draft_prices_plain_decoding() -> None:
    document = answered(*PREDICT[:-2], "--draft", "none")
    assert document["predicted_speedup"] == 1.0
    assert document["strategy"]["draft_kind"] == "none"


def test_predict_finds_the_best_gamma_when_none_is_given() -> None:
    best = answered(*PREDICT[:-2])
    fixed = [answered(*PREDICT[:-1], gamma)["predicted_speedup"] for gamma in (1, 2, 4, 6, 10)]
    assert best["predicted_speedup"] >= max(fixed)


def test_predict_takes_acceptance_from_the_caller() -> None:
    given = answered(*PREDICT, "--mean-acceptance-length", "3")
    assert given["predicted_mean_acceptance_length"] == 3
    rate = answered(*PREDICT, "--acceptance-rate", "1")
    assert rate["predicted_mean_acceptance_length"] == 3
    assert rate["predicted_speedup"] == given["predicted_speedup"]


def test_predict_writes_the_document_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "prediction.json"
    assert json.loads(file.read_text() if shown(*PREDICT, "-o", file) else "") == answered(*PREDICT)


@pytest.mark.parametrize("command", ["profiles", "models", "environment"])
def test_listings_are_text_and_json(command: str) -> None:
    assert call(command).stdout
    assert json.loads(call(command, "--json").stdout)


@pytest.mark.slow
def test_report_draws_every_figure_and_a_page(tmp_path: Path) -> None:
    found = answered("report", "-o", tmp_path / "report", "--batch-sizes", "1,16,64", "--context-lens", "1k,32k")
    files = {Path(file).name for file in found["files"]}
    names = ("time_breakdown", "cost_ratios", "speedup_by_batch", "arithmetic_intensity", "speedup_map")
    assert files == {"index.html", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))}
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == len(names)
    assert "http-equiv" not in page
    assert 'src="' not in page


def test_calibrate_fits_a_profile_to_published_step_times(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    document = answered("calibrate", "--from-published", "h100", "-o", file)
    (engine,) = [fit for fit in document["calibration"]["fits"] if fit["part"] == "engine"]
    assert engine["num_points"] == 29
    fitted, shipped = load_profile(file), resolve_profile("h100-sxm")
    assert fitted.calibration.attention == shipped.calibration.attention
    assert fitted.calibration.engine.layer_overhead_s == pytest.approx(shipped.calibration.engine.layer_overhead_s, rel=0.02)
    assert "NVLink" in file.read_text(), "what people wrote in the profile is kept"


def test_predict_has_both_numbers_where_the_output_length_is_said() -> None:
    alone, whole = answered(*PREDICT), answered(*PREDICT, "--output-len", "300")
    assert alone["serving"] is None
    assert whole["predicted_speedup"] == alone["predicted_speedup"]
    served = whole["serving"]
    assert 1 < served["predicted_speedup_low"] < served["predicted_speedup"] < served["predicted_speedup_high"]
    assert served["predicted_speedup"] < whole["predicted_speedup"]
    assert f"end to end {served['predicted_speedup']:.2f}x" in " ".join(shown(*PREDICT, "--output-len", "300").split())
    assert "it needs an output length" in shown(*PREDICT)
