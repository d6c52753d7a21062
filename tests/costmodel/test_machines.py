"""Machines by name, and the table of datasheets."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hardware.catalog import builtin_profiles, find_profile, profile_files, resolve_profile
from magicdec.costmodel.hardware.datasheets import PEAK_COLUMNS, datasheets, memory_options
from magicdec.costmodel.hardware.naming import MachineName
from magicdec.costmodel.hardware.profile import Calibration, HardwareProfile
from magicdec.costmodel.hardware.profile_file import parse_profile
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.evaluate import UNCALIBRATED_ERROR, relative_error

EVERY = [resolve_profile(name) for name in builtin_profiles()]
IDS = list(builtin_profiles())
# What drivers, torch and people print, and the profile it means.
PRINTED = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H20": "h20-96gb",
    "NVIDIA GH200 480GB": "gh200-96gb",
    "NVIDIA GB10": "gb10",
    "NVIDIA B200": "b200-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "NVIDIA A10G": "a10g",
    "NVIDIA A10": "a10",
    "NVIDIA A30": "a30",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "Tesla T4": "t4",
    "Tesla P40": "p40",
    "Tesla V100-SXM2-32GB": "v100-sxm-32gb",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "rtx-4090-laptop",
    "NVIDIA GeForce RTX 3060 Ti": "rtx-3060-ti",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "rtx-4070-ti-super",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000-workstation",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "rtx-pro-6000-max-q",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI300X OAM": "mi300x",
    "AMD Instinct MI355X": "mi355x",
    "Radeon RX 7900 XTX": "rx-7900-xtx",
    "AMD Radeon RX 9070 XT": "rx-9070-xt",
    "AMD Radeon AI PRO R9700": "ai-pro-r9700",
    "Intel(R) Arc(TM) A770 Graphics": "arc-a770",
    "Intel(R) Arc(TM) B580 Graphics": "arc-b580",
    "RTX 4090": "rtx-4090",
    "rtx4090": "rtx-4090",
    "4090": "rtx-4090",
    "RTX_4090": "rtx-4090",
    "GeForce RTX™ 5080": "rtx-5080",
    "4070ti super": "rtx-4070-ti-super",
    "RTX 4090 mobile": "rtx-4090-laptop",
    "RTX 5060 Ti 16GB": "rtx-5060-ti-16gb",
    "rtx 3080 12 GB": "rtx-3080-12gb",
    "7900xtx": "rx-7900-xtx",
    "A770": "arc-a770",
    "dgx spark": "gb10",
    "gaudi 3": "gaudi3",
    "trn2": "trainium2",
    "TPU v6e": "tpu-v6e",
    "ironwood": "tpu-v7",
    "6000 Ada": "rtx-6000-ada",
    "M4 Max 64GB": "m4-max-64gb",
    "m4 max 36 gb": "m4-max-32core-36gb",
    "Strix Halo 64GB": "ryzen-ai-max-395-64gb",
}


@pytest.mark.parametrize(("printed", "name"), PRINTED.items())
def test_what_drivers_and_people_print_is_one_machine(printed: str, name: str) -> None:
    found = find_profile(printed)
    assert found.profile.name == name
    assert not found.note


@pytest.mark.parametrize("profile", EVERY, ids=IDS)
def test_every_profile_resolves_from_its_name_description_and_drivers_name(profile: HardwareProfile) -> None:
    assert resolve_profile(profile.name).name == profile.name
    assert resolve_profile(profile.description).name == profile.name
    alike = Counter(name for other in EVERY for name in other.driver_names)
    for name in profile.driver_names:
        found = find_profile(name)
        assert found.profile.name == profile.name or alike[name] > 1
        assert found.note == "" or alike[name] > 1 or len(memory_options(datasheets()[profile.name])) > 1
        memory_gb = round(profile.peak.memory_bytes / 1e9)
        if profile.name not in datasheets() or not memory_options(datasheets()[profile.name]):
            assert find_profile(name, memory_gb=memory_gb).profile.name == profile.name, "the driver tells name and memory"


@pytest.mark.parametrize("profile", EVERY, ids=IDS)
def test_every_alias_resolves_in_any_case_and_with_any_separators(profile: HardwareProfile) -> None:
    for alias in profile.aliases:
        for written in (alias, alias.upper(), alias.replace("-", " "), alias.replace("-", "_")):
            assert resolve_profile(written).name == profile.name


@given(st.sampled_from(list(PRINTED)), st.randoms(use_true_random=False))
def test_case_and_separators_never_matter(printed: str, chance: random.Random) -> None:
    written = "".join(chance.choice((char.upper(), char.lower())) for char in printed)
    written = re.sub("[ -]", lambda match: chance.choice(" -_"), written)
    assert resolve_profile(written).name == PRINTED[printed]


@given(st.text(max_size=60))
def test_any_text_is_a_machine_or_refused_in_one_message(text: str) -> None:
    MachineName.parse(text)
    with contextlib.suppress(InputError):
        assert find_profile(text.replace("/", "").replace(".", "") or "x").profile.name


@pytest.mark.parametrize(
    ("name", "chosen", "others"),
    [
        ("h100", "h100-sxm", ["h100-pcie", "h100-nvl"]),
        ("H100-80GB", "h100-sxm", ["h100-pcie"]),
        ("a100", "a100-sxm-80gb", ["a100-sxm-40gb", "a100-pcie-80gb"]),
        ("RTX PRO 6000", "rtx-pro-6000", ["rtx-pro-6000-workstation", "rtx-pro-6000-max-q"]),
        ("NVIDIA GeForce RTX 3080", "rtx-3080-10gb", ["rtx-3080-12gb"]),
        ("V100", "v100-sxm-32gb", ["v100-pcie-16gb"]),
    ],
)
def test_a_name_of_several_machines_says_which_was_taken(name: str, chosen: str, others: list[str]) -> None:
    found = find_profile(name)
    assert found.profile.name == chosen
    assert f"{name} is taken for {chosen}" in found.note
    assert all(other in found.note for other in others)


def test_the_memory_that_a_driver_tells_chooses_the_variant() -> None:
    assert find_profile("NVIDIA GeForce RTX 3080", memory_gb=13).profile.name == "rtx-3080-12gb"
    assert find_profile("NVIDIA GeForce RTX 5060 Ti", memory_gb=8).profile.name == "rtx-5060-ti-8gb"
    assert find_profile("NVIDIA GH200 480GB", memory_gb=103).profile.name == "gh200-96gb"
    assert find_profile("Apple M3 Max", memory_gb=36).profile.name == "m3-max-30core-36gb"


def test_unified_memory_is_what_the_gpu_may_use_of_it() -> None:
    small, large = resolve_profile("m4-pro-24gb"), resolve_profile("m4-pro-64gb")
    assert small.peak.memory_bytes == pytest.approx(24 * 2**30 * 2 / 3, rel=1e-3)
    assert large.peak.memory_bytes == pytest.approx(64 * 2**30 * 3 / 4, rel=1e-3)
    assert "24, 48 or 64 GB" in find_profile("m4-pro").note
    assert resolve_profile(small.name) == small
    assert parse_profile(small.text, where="small") == small


def test_a_refitted_card_has_the_memory_that_its_name_says() -> None:
    found = find_profile("rtx-4090-48gb")
    usual = resolve_profile("rtx-4090")
    assert found.profile.name == "rtx-4090-48gb"
    assert found.profile.peak.memory_bytes == pytest.approx(4.8e10)
    assert found.profile.peak.flop_per_s == usual.peak.flop_per_s
    assert "comes with 24 GB" in found.note
    assert found.profile.sha256 != usual.sha256
    with pytest.raises(InputError, match="memory size near that of rtx-4090, 24 GB"):
        find_profile("rtx-4090-999gb")


@pytest.mark.parametrize(
    ("name", "near"),
    [("h1000", "h100"), ("rtx 4095", "rtx-4090"), ("mi300", "mi300x"), ("m4 mx", "m4"), ("A100 NVL", "a100-sxm-80gb")],
)
def test_an_unknown_name_gets_the_nearest_ones(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        find_profile(name, "where")
    (problem,) = caught.value.problems
    assert problem.where == "where"
    assert near in problem.expected
    assert problem.found == repr(name)


# The figures.


def test_names_and_aliases_are_unique_over_all_profiles() -> None:
    names = [text for profile in EVERY for text in {MachineName.parse(known).text for known in (profile.name, *profile.aliases)}]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert not set(profile_files()) & set(datasheets())


@pytest.mark.parametrize("profile", EVERY, ids=IDS)
def test_every_figure_names_its_document(profile: HardwareProfile) -> None:
    assert set(profile.sources) == set(vars(profile.peak)) - {"interconnect"}
    assert all("https://" in source for source in profile.sources.values())
    assert all(
        name.isprintable() and name == name.strip() for name in (*profile.driver_names, *profile.aliases, profile.description)
    )
    assert profile.driver_names or profile.name.endswith("-vllm")


@pytest.mark.parametrize("profile", EVERY, ids=IDS)
def test_every_figure_is_physically_plausible(profile: HardwareProfile) -> None:
    peak, rates = profile.peak, profile.peak.flop_per_s
    assert 6e10 < peak.memory_bandwidth_bytes_per_s < 1e13
    assert 5e9 < peak.memory_bytes < 6e11
    assert 4e9 < peak.interconnect_bandwidth_bytes_per_s < 2e12
    assert 2 <= peak.num_sms <= 400
    assert 1e6 < peak.l2_cache_bytes < 3e8
    assert 2e12 < rates["float32"] < 5e14
    assert rates["float32"] <= profile.flop_per_s("bfloat16") <= 3e15
    assert profile.flop_per_s("float16") >= profile.flop_per_s("bfloat16")
    wide, narrow = profile.flop_per_s("bfloat16"), rates.get("fp8", 0)
    assert not narrow or 0.99 <= narrow / wide <= 4.01, "8 bits: as fast as 16, or up to four times"
    assert "fp4" not in rates or 1 <= rates["fp4"] / narrow <= 4.01
    assert 20 < profile.ridge_point("bfloat16") < 600
    whole_memory_s = peak.memory_bytes / peak.memory_bandwidth_bytes_per_s
    assert 5e-3 < whole_memory_s < 0.6, "time of one pass over all memory"


FLOP_PER_CLOCK = {"rtx-2080-ti": 128, "quadro-rtx-6000": 128, "quadro-rtx-8000": 128}


@pytest.mark.parametrize("name", [name for name, row in datasheets().items() if row["clock_hz"]])
def test_the_float32_rate_is_cores_times_clock(name: str) -> None:
    row = datasheets()[name]
    per_clock = FLOP_PER_CLOCK.get(name, 256)
    assert float(row["float32"]) == pytest.approx(int(row["num_sms"]) * per_clock * float(row["clock_hz"]), rel=0.01)


def test_the_table_names_known_columns_documents_and_links_only() -> None:
    for name, row in datasheets().items():
        assert row["interconnect"] in ("fabric", "pcie", "network"), name
        cited = dict(pair.split("=") for pair in row["other_sources"].split(";") if pair)
        assert set(cited) <= {"flop_per_s", *PEAK_COLUMNS}, name
        options = memory_options(row)
        assert not options or float(row["memory_bytes"]) == options[max(options)], name
        assert all(usable <= installed * 2**30 for installed, usable in options.items()), name


# What is assumed of a machine without a calibration.


@pytest.mark.parametrize("name", datasheets())
def test_a_datasheet_has_the_default_laws_and_says_so(name: str) -> None:
    profile = resolve_profile(name)
    assert profile.calibration == Calibration.default(profile.peak)
    assert profile.provenance.startswith("datasheet: not calibrated")
    assert relative_error(profile) == UNCALIBRATED_ERROR
    law = profile.calibration.attention
    assert law.sm_bytes_per_s * profile.peak.num_sms > profile.peak.memory_bandwidth_bytes_per_s, (
        "all cores together saturate memory"
    )
    assert law == AttentionLaw() or profile.peak.num_sms < 25


@pytest.mark.parametrize("name", ["rtx-3060", "m1", "gb10", "p40", "tpu-v7", "trainium2", "gaudi3", "mi355x", "rx-9060-xt"])
def test_a_step_takes_at_least_the_bytes_over_the_bandwidth_and_not_much_more(name: str) -> None:
    hardware, model = resolve_profile(name), resolve_model("llama-3.2-1b")
    step_s = float(Deployment(model, hardware).pass_time(8, 1, 8000).total_s)
    read_s = (model.weight_bytes + 8 * 8000 * model.kv_bytes_per_token) / hardware.peak.memory_bandwidth_bytes_per_s
    assert read_s < step_s < 2.5 * read_s + 1e-3


KERNELS_CALIBRATED = [p.name for p in EVERY if p.calibrated and p.calibration.fit_of("engine") is None]


@pytest.mark.parametrize("name", KERNELS_CALIBRATED)
def test_the_defaults_are_within_their_interval_of_what_calibrated_kernels_take(name: str) -> None:
    """On one GPU. This is what the interval of a datasheet rests on."""
    known = resolve_profile(name)
    assumed = replace(known, calibration=Calibration.default(known.peak))
    model = resolve_model("llama-3.1-8b")
    shape = (np.array([1, 8, 32, 64])[:, None, None], np.array([1, 4])[:, None], np.array([1000, 8000, 32_000]))
    ours, theirs = (Deployment(model, profile).pass_time(*shape).total_s for profile in (assumed, known))
    off = np.abs(ours / theirs - 1)
    assert off.mean() < UNCALIBRATED_ERROR
    assert off.max() < 0.3


def test_cards_without_direct_links_take_longer_to_exchange() -> None:
    model = resolve_model("llama-3.1-8b")

    def communication_s(name: str) -> float:
        return float(Deployment(model, resolve_profile(name), 2, 2).pass_time(16, 1, 4000).communication_s)

    assert communication_s("h100-nvl") < communication_s("rtx-5090") < communication_s("rtx-3090") < communication_s("m4-max")
