from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.hardware import (
    Calibration,
    Fit,
    builtin_profiles,
    load_profile,
    parse_profile,
    render_profile,
    resolve_profile,
    with_calibration,
)

PLAIN = builtin_profiles()["h200-sxm"].read_text(encoding="utf-8")
FIT = Fit("a test", ("overlap",), 12, 0.01, 0.02, 0.05, "2026-11-22")


def problems_of(text: str) -> dict[str, tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        parse_profile(text, where="my.yaml")
    assert {problem.where for problem in caught.value.problems} == {"my.yaml"}
    return {problem.key: (problem.expected, problem.found) for problem in caught.value.problems}


def changed(pattern: str, replacement: str, text: str = PLAIN) -> str:
    result, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    return result


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_shipped_profile_is_plausible(name: str) -> None:
    profile = resolve_profile(name)
    peak = profile.peak
    assert profile.name == name
    assert 1e11 < peak.memory_bandwidth_bytes_per_s < 2e13
    assert 1e10 < peak.memory_bytes < 1e12
    assert 1e10 < peak.interconnect_bandwidth_bytes_per_s < 2e12
    assert 40 < peak.num_sms < 400
    assert 1e6 < peak.l2_cache_bytes < 1e9
    assert 1e13 < peak.flop_per_s["bfloat16"] < 1e16
    assert peak.flop_per_s["float32"] <= peak.flop_per_s["bfloat16"] == peak.flop_per_s["float16"]
    assert peak.flop_per_s.get("fp8", 1e16) >= peak.flop_per_s["bfloat16"]
    assert 50 < profile.ridge_point("bfloat16") < 600


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_peak_of_a_shipped_profile_has_a_source(name: str) -> None:
    profile = resolve_profile(name)
    assert set(profile.sources) == set(vars(profile.peak))
    assert all(url.startswith("https://") for url in profile.sources.values())


def test_names_and_aliases_are_unique_over_all_profiles() -> None:
    names = [known for name in builtin_profiles() for known in (name, *resolve_profile(name).aliases)]
    assert len(names) == len(set(names))


def test_every_alias_resolves_in_any_case() -> None:
    for name in builtin_profiles():
        for alias in resolve_profile(name).aliases:
            assert resolve_profile(alias.upper().replace("-", "_")).name == name


def test_an_unknown_gpu_lists_close_ones() -> None:
    with pytest.raises(InputError) as caught:
        resolve_profile("h1000")
    (problem,) = caught.value.problems
    assert problem.where == "--hardware"
    assert "h100" in problem.expected
    assert problem.found == "'h1000'"


def test_a_path_to_a_profile_works_where_a_name_does(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(changed("^name: .*", "name: mine"), encoding="utf-8")
    assert resolve_profile(str(file)).name == "mine"
    assert resolve_profile(str(file)) == load_profile(file)


def test_the_fingerprint_follows_the_text() -> None:
    one, other = parse_profile(PLAIN, where="a"), parse_profile(PLAIN + "# another thought\n", where="a")
    assert len(one.sha256) == 64
    assert one.sha256 != other.sha256
    assert replace(one, sha256="") == replace(other, sha256="")


def test_a_type_without_a_rate_computes_at_that_of_float32(h200) -> None:
    assert h200.flop_per_s("bfloat16") == 9.89e14
    assert h200.flop_per_s("int4") == h200.flop_per_s("float32") == 6.7e13
    bfloat16_only = replace(h200, peak=replace(h200.peak, flop_per_s={"float32": 1e13, "bfloat16": 2e14}))
    assert bfloat16_only.flop_per_s("float16") == 2e14


def test_the_ridge_point_is_peak_over_bandwidth(h200) -> None:
    assert h200.ridge_point("bfloat16") == pytest.approx(206.04, rel=1e-4)


def test_a_number_that_yaml_reads_as_text_is_explained() -> None:
    expected, found = problems_of(changed(r"4\.8e\+12", "4.8e12"))["peak.memory_bandwidth_bytes_per_s"]
    assert "4.8e+12" in expected
    assert found == "'4.8e12' (str)"


def test_several_errors_are_reported_at_once() -> None:
    text = changed(r"4\.8e\+12", "4.8e12", changed("num_sms: 132", "num_sms: -1\n  colour: red"))
    found = problems_of(changed("schema_version: 1", "schema_version: 2", text))
    assert set(found) == {"schema_version", "peak.memory_bandwidth_bytes_per_s", "peak.num_sms", "peak.colour"}
    assert found["peak.colour"] == ("no such key", "'red'")
    assert found["schema_version"] == ("1", "2 (int)")


def test_a_peak_without_a_source_is_named() -> None:
    text = changed(r"^  num_sms: https.*\n", "")
    assert "num_sms" in str(problems_of(text))


def test_a_missing_source_is_reported_together_with_the_other_errors() -> None:
    text = changed(r"4\.8e\+12", "4.8e12", changed(r"^  num_sms: https.*\n", ""))
    found = problems_of(text)
    assert "peak.memory_bandwidth_bytes_per_s" in found
    assert "num_sms" in str(found)


@pytest.mark.parametrize("value", ["0.0", "-1.0", ".inf", ".nan", "fast", "true"])
def test_a_bandwidth_is_a_positive_finite_number(value: str) -> None:
    assert set(problems_of(changed(r"4\.8e\+12", value))) == {"peak.memory_bandwidth_bytes_per_s"}


def test_an_unknown_operand_type_and_a_missing_float32_are_refused() -> None:
    assert "int9" in str(problems_of(changed("    int8: ", "    int9: ")))
    assert "float32" in str(problems_of(changed(r"    float32: .*\n", "")))


@pytest.mark.parametrize(("text", "found"), [("- 1\n", "list"), ("", "NoneType"), ("just text", "str")])
def test_yaml_that_is_no_mapping_is_refused(text: str, found: str) -> None:
    assert problems_of(text)[""][1] == found


def test_what_is_not_yaml_is_refused() -> None:
    assert problems_of("a: [")[""][0] == "YAML"


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: expected a readable hardware profile"):
        load_profile(tmp_path / "gone.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_profile(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", ["h200-sxm", "a100-sxm-80gb"])
def test_a_profile_survives_being_written_and_read(name: str) -> None:
    profile = resolve_profile(name)
    again = parse_profile(render_profile(profile, date(2026, 11, 22)), where="again.yaml")
    assert replace(again, sha256="") == replace(profile, sha256="")
    assert again.calibrated == (name == "a100-sxm-80gb")


def test_a_calibration_survives_being_written_and_read() -> None:
    calibration = Calibration(
        overlap=0.123, query_tiles=(8, 32), splits_kv=False, layer_overhead_s=1e-6, head_sharded=False, fit=FIT
    )
    assert parse_profile(with_calibration(PLAIN, calibration), where="again.yaml").calibration == calibration


def test_writing_a_calibration_keeps_what_people_wrote() -> None:
    once = with_calibration(PLAIN, Calibration(fit=FIT))
    twice = with_calibration(once, Calibration(overlap=0.5, fit=FIT))
    assert once.startswith(PLAIN.rstrip("\n"))
    assert twice.startswith(PLAIN.rstrip("\n"))
    assert twice.count("\ncalibration:") == 1
    assert parse_profile(twice, where="twice.yaml").calibration.overlap == 0.5


def test_writing_a_calibration_keeps_what_people_wrote_below_it() -> None:
    above, below = PLAIN.split("\nsources:")
    text = with_calibration(above, Calibration(fit=FIT)) + "sources:" + below
    assert parse_profile(text, where="moved.yaml").calibrated
    again = parse_profile(with_calibration(text, Calibration(overlap=0.5, fit=FIT)), where="moved.yaml")
    assert again.calibration.overlap == 0.5


def test_without_a_calibration_the_stated_defaults_hold(h200) -> None:
    assert not h200.calibrated
    assert h200.calibration == Calibration()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_efficiency", "0.0"),
        ("attention_memory_efficiency", "1.2"),
        ("overlap", "1.1"),
        ("layer_overhead_s", "-1.0e-6"),
        ("two_shot_latency_factor", "0.5"),
        ("splits_kv", "1"),
        ("colour", "red"),
    ],
)
def test_a_calibration_out_of_its_physical_range_is_refused(key: str, value: str) -> None:
    text = with_calibration(PLAIN, Calibration(fit=FIT)).replace("\ncalibration:\n", f"\ncalibration:\n  {key}: {value}\n")
    text = re.sub(rf"(?<!calibration:)\n  {key}: .*", "", text)  # the one that was there
    assert set(problems_of(text)) == {f"calibration.{key}"}
