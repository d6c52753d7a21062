from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from random_inputs import machines

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.calibration.fitting import bounds_of
from magicdec.costmodel.hardware.catalog import builtin_profiles, profile_files, resolve_profile
from magicdec.costmodel.hardware.profile import COMPUTE_DTYPES, Calibration, EngineLaw, Fit, HardwareProfile
from magicdec.costmodel.hardware.profile_file import load_profile, parse_profile, render_profile, with_calibration
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.collectives import AllreduceLaw
from magicdec.costmodel.kernels.gemm import GemmLaw

SHIPPED = profile_files()["h200-sxm"].read_text(encoding="utf-8")
PLAIN = SHIPPED[: SHIPPED.index("\ncalibration:") + 1]
FIT = Fit("engine", "a test", ("engine.layer_overhead_s",), 12, 0.01, 0.02, 0.05, "2026-11-22")
FITTED = Calibration(fits=(FIT,))
PARTS = {
    "gemm": GemmLaw,
    "attention": AttentionLaw,
    "allreduce": AllreduceLaw,
    "engine": EngineLaw,
    "table_attention": AttentionLaw,
}


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
def test_every_shipped_profile_passes_the_validation_of_users_files(name: str) -> None:
    """It is read without validation; `repr` also tells 1 from 1.0."""
    profile = resolve_profile(name)
    assert profile.name == name
    assert repr(parse_profile(profile.text, where=name)) == repr(profile)


def test_an_unknown_gpu_lists_close_ones() -> None:
    with pytest.raises(InputError) as caught:
        resolve_profile("h1000")
    (problem,) = caught.value.problems
    assert problem.where == "hardware"
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
    assert replace(one, text="") == replace(other, text="")


def test_a_type_computes_at_its_own_rate_or_at_that_of_what_it_is_widened_to(h200: HardwareProfile) -> None:
    assert h200.flop_per_s("bfloat16") == h200.flop_per_s("float16") == 9.89e14
    assert h200.flop_per_s("fp8") == h200.flop_per_s("int8") == 1.979e15
    assert h200.flop_per_s("int4") == h200.flop_per_s("mxfp4") == 9.89e14, "weights are widened on the way"
    assert h200.flop_per_s("float32") == h200.flop_per_s("float64") == 6.7e13
    bfloat16_only = replace(h200, peak=replace(h200.peak, flop_per_s={"float32": 1e13, "bfloat16": 2e14}))
    assert bfloat16_only.flop_per_s("float16") == bfloat16_only.flop_per_s("fp8") == bfloat16_only.flop_per_s("int8") == 2e14
    vector_only = replace(h200, peak=replace(h200.peak, flop_per_s={"float32": 1e13}))
    assert {vector_only.flop_per_s(dtype) for dtype in COMPUTE_DTYPES} == {1e13}


def test_the_ridge_point_is_peak_over_bandwidth(h200) -> None:
    assert h200.ridge_point("bfloat16") == pytest.approx(206.04, rel=1e-4)


def test_a_number_that_yaml_reads_as_text_is_explained() -> None:
    expected, found = problems_of(changed(r"4\.8e\+12", "4.8e12"))["peak.memory_bandwidth_bytes_per_s"]
    assert "4.8e+12" in expected
    assert found == "'4.8e12' (str)"


def test_several_errors_are_reported_at_once() -> None:
    text = changed(r"4\.8e\+12", "4.8e12", changed("num_sms: 132", "num_sms: -1\n  colour: red"))
    found = problems_of(changed("schema_version: 2", "schema_version: 1", text))
    assert set(found) == {"schema_version", "peak.memory_bandwidth_bytes_per_s", "peak.num_sms", "peak.colour"}
    assert found["peak.colour"] == ("no such key", "'red'")
    assert found["schema_version"] == ("2", "1 (int)")


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
    assert "in YAML" in problems_of("a: [")["line 2"][0]


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: expected a readable hardware profile"):
        load_profile(tmp_path / "gone.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_profile(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", [*profile_files(), "rtx-3090", "m4-max", "tpu-v7"])
def test_a_profile_survives_being_written_and_read(name: str) -> None:
    profile = resolve_profile(name)
    again = parse_profile(render_profile(profile, date(2026, 11, 22)), where="again.yaml")
    made_for = replace(profile.calibration, peaks=profile.peak.digest if profile.calibrated else "")
    assert replace(again, text="") == replace(profile, text="", calibration=made_for)


@settings(max_examples=20)
@given(machines())
def test_any_machine_survives_being_written_and_read(machine: HardwareProfile) -> None:
    calibrated = replace(
        machine,
        sources=dict.fromkeys(vars(machine.peak), "https://example.com"),
        calibration=replace(machine.calibration, fits=(FIT, replace(FIT, part="gemm", benchmark={"weight_share": 0.5}))),
    )
    again = parse_profile(render_profile(calibrated, date(2026, 11, 22)), where="again.yaml")
    made_for = replace(calibrated.calibration, peaks=calibrated.peak.digest)
    assert replace(again, text="") == replace(calibrated, calibration=made_for)


def test_a_kernel_of_the_tables_survives_beside_that_of_the_engine() -> None:
    calibration = replace(FITTED, table_attention=AttentionLaw(launch_s=7e-6, min_split_group=2, splits_kv=False))
    assert parse_profile(with_calibration(PLAIN, calibration), where="again.yaml").calibration == calibration


def test_writing_a_calibration_keeps_what_people_wrote() -> None:
    once = with_calibration(PLAIN, FITTED)
    twice = with_calibration(once, replace(FITTED, gemm=GemmLaw(launch_s=5e-6)))
    assert once.startswith(PLAIN.rstrip("\n"))
    assert twice.startswith(PLAIN.rstrip("\n"))
    assert twice.count("\ncalibration:") == 1
    assert parse_profile(twice, where="twice.yaml").calibration.gemm.launch_s == 5e-6


def test_writing_a_calibration_keeps_what_people_wrote_below_it() -> None:
    above, below = PLAIN.split("\nsources:")
    text = with_calibration(above, FITTED) + "sources:" + below
    assert parse_profile(text, where="moved.yaml").calibrated
    again = parse_profile(with_calibration(text, replace(FITTED, gemm=GemmLaw(launch_s=5e-6))), where="moved.yaml")
    assert again.calibration.gemm.launch_s == 5e-6


def test_without_a_calibration_the_stated_defaults_hold() -> None:
    plain = parse_profile(PLAIN, where="plain.yaml")
    assert not plain.calibrated
    assert plain.calibration == Calibration()
    assert "datasheet" in plain.provenance
    assert "not calibrated" in plain.provenance


def test_a_profile_says_what_its_prices_rest_on(a100: HardwareProfile, h200: HardwareProfile) -> None:
    engine, attention = a100.calibration.fit_of("engine"), h200.calibration.fit_of("attention")
    assert engine is not None
    assert attention is not None
    assert engine.data in a100.provenance
    assert f"mean error {engine.mean_error:.1%}" in a100.provenance
    assert attention.data in h200.provenance
    assert "engine overheads are defaults" in h200.provenance
    assert h200.calibration.fit_of("engine") is None


@pytest.mark.parametrize("name", builtin_profiles())
def test_the_calibration_of_a_shipped_profile_is_physical_and_says_where_it_comes_from(name: str) -> None:
    calibration = resolve_profile(name).calibration
    for part, law in PARTS.items():
        for key, value in vars(getattr(calibration, part) or law()).items():
            if not isinstance(value, bool):
                low, high = bounds_of(law, key)
                assert low <= value <= high, (part, key)
    parts = [fit.part for fit in calibration.fits]
    assert len(parts) == len(set(parts))
    for fit in calibration.fits:
        assert 0 < fit.median_error <= fit.mean_error * 1.5 <= 1.5 * fit.worst_error
        assert fit.mean_error < {"gemm": 0.12, "attention": 0.14, "allreduce": 0.35, "engine": 0.03}[fit.part]
        assert fit.num_points > len(fit.fitted) > 0
        for parameter in fit.fitted:
            owner, _, key = parameter.rpartition(".")
            assert hasattr(PARTS[owner or fit.part], key), parameter
    usual = Calibration.default(resolve_profile(name).peak)
    changed = {part for part in PARTS if getattr(calibration, part) not in (None, getattr(usual, part))}
    assert bool(changed) == resolve_profile(name).calibrated, "what is fitted says so, and what says so is fitted"


def test_every_part_of_a_fit_is_a_part_of_the_calibration() -> None:
    assert set(get_args(Fit.__annotations__["part"]) or ("gemm", "attention", "allreduce", "engine")) <= set(asdict(Calibration()))


def with_line(part: str, key: str, value: str) -> str:
    """A profile whose calibration has one line changed or added."""
    lines = with_calibration(PLAIN, FITTED).split("\n")
    start = lines.index(f"  {part}:") if part else lines.index("calibration:")
    indent = "    " if part else "  "
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(indent)), len(lines))
    block = [line for line in lines[start + 1 : end] if not line.startswith(f"{indent}{key}:")]
    return "\n".join([*lines[: start + 1], f"{indent}{key}: {value}", *block, *lines[end:]])


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("", "colour", "red"),
        ("gemm", "colour", "red"),
        ("gemm", "memory_efficiency", "0.0"),
        ("gemm", "compute_efficiency", "1.2"),
        ("gemm", "launch_s", "-1.0e-6"),
        ("gemm", "sharpness", "0.9"),
        ("gemm", "tile_rows", "0"),
        ("gemm", "tile_rows", "4.5"),
        ("attention", "memory_efficiency", "1.2"),
        ("attention", "sm_bytes_per_s", ".inf"),
        ("attention", "colour", "red"),
        ("allreduce", "two_shot_latency_factor", "0.5"),
        ("allreduce", "latency_s", ".nan"),
        ("engine", "layer_overhead_s", "-1.0e-6"),
        ("engine", "verify_wait", "2.0"),
        ("engine", "head_sharded", "maybe"),
    ],
)
def test_a_calibration_out_of_its_physical_range_is_refused(part: str, key: str, value: str) -> None:
    parse_profile(with_calibration(PLAIN, FITTED), where="my.yaml")
    assert set(problems_of(with_line(part, key, value))) == {f"calibration.{part}.{key}".replace("..", ".")}


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("attention", "splits_kv", "1"),
        ("engine", "head_sharded", "'yes'"),
        ("gemm", "tile_rows", "'64'"),
        ("gemm", "launch_s", "1e-6"),
    ],
)
def test_a_calibration_of_the_wrong_type_is_refused(part: str, key: str, value: str) -> None:
    assert set(problems_of(with_line(part, key, value))) == {f"calibration.{part}.{key}"}


def test_several_errors_of_a_calibration_are_reported_at_once() -> None:
    text = with_line("gemm", "memory_efficiency", "0.0").replace("    verify_wait: 0.0", "    verify_wait: 1.0")
    assert set(problems_of(text)) == {"calibration.gemm.memory_efficiency", "calibration.engine.verify_wait"}
