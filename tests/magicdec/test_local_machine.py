"""`--hardware local`, with stand-ins for the tools of drivers on PATH; and lists of GPUs."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import answered, call, refused, shown

from magicdec.costmodel.base.notes import Note
from magicdec.inputs import local_machine
from magicdec.inputs.local_machine import Device, local_devices
from magicdec.inputs.machines import find_machine

Tool = Callable[[str, str], None]
WORKLOAD = ["predict", "--model", "llama-3.2-1b", "--batch-size", "1", "--context-len", "4k"]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Writes a stand-in for a tool; nothing else is on PATH, and torch tells of no GPU."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_machine, "find_spec", lambda name: None)

    def write(name: str, body: str) -> None:
        file = tmp_path / name
        file.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    return write


def printing(text: str) -> str:
    return f"sys.stdout.write({text!r})"


ROCM = {
    "card0": {"Card Series": "AMD Instinct MI300X OAM", "Card Model": "0x74a1", "VRAM Total Memory (B)": "206141652992"},
    "card1": {"Card Series": "AMD Instinct MI300X OAM", "Card Model": "0x74a1", "VRAM Total Memory (B)": "206141652992"},
}


@pytest.mark.parametrize(
    ("name", "answer", "devices", "profile"),
    [
        ("nvidia-smi", "NVIDIA H100 80GB HBM3, 81559\n", (Device("NVIDIA H100 80GB HBM3", 86),), "h100-sxm"),
        ("nvidia-smi", "NVIDIA GeForce RTX 3080, 12288\n", (Device("NVIDIA GeForce RTX 3080", 13),), "rtx-3080-12gb"),
        ("nvidia-smi", "NVIDIA GeForce RTX 4090, 49140\n", (Device("NVIDIA GeForce RTX 4090", 52),), "rtx-4090-52gb"),
        ("nvidia-smi", "NVIDIA GB10, [N/A]\n", (Device("NVIDIA GB10", None),), "gb10"),
        ("rocm-smi", "WARNING: AMD GPU device(s) is/are in a low-power state.\n" + json.dumps(ROCM), None, "mi300x"),
        ("sysctl", "Apple M4 Max\n68719476736\n", (Device("Apple M4 Max", 64),), "m4-max-64gb"),
    ],
    ids=["h100", "by memory", "refitted", "unified", "rocm", "apple"],
)
def test_the_machine_is_asked(tool: Tool, name: str, answer: str, devices: tuple[Device, ...] | None, profile: str) -> None:
    tool(name, printing(answer))
    assert local_devices() == (devices or (Device("AMD Instinct MI300X OAM", 206),) * 2)
    with pytest.warns(Note, match="this machine has"):
        found = find_machine("local")
    assert found is not None
    assert found.name == profile


def test_nvidia_smi_is_asked_for_names_and_memory(tool: Tool) -> None:
    tool("nvidia-smi", "print(' '.join(sys.argv[1:]).replace(',', ';') + ', 1000')")
    assert local_devices() == (Device("--query-gpu=name;memory.total --format=csv;noheader;nounits", 1),)


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(9)",
        printing(""),
        printing("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") + "; sys.exit(9)",
        "sys.stdout.buffer.write(b'\\xff\\xfe\\x00')",
    ],
    ids=["fails", "silent", "no driver", "no text"],
)
@pytest.mark.parametrize("name", ["nvidia-smi", "rocm-smi", "sysctl"])
def test_a_tool_without_an_answer_is_passed_over(tool: Tool, name: str, body: str) -> None:
    tool(name, body)
    assert local_devices() == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"card0": 7}', '{"card0": {"Card Series": "0x74a1"}}', "{}"])
def test_what_rocm_smi_prints_may_be_anything(tool: Tool, text: str) -> None:
    tool("rocm-smi", printing(text))
    assert local_devices() == ()


def test_a_tool_that_hangs_is_left_behind(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_machine, "TOOL_LIMIT_S", 0.3)
    monkeypatch.setattr(local_machine._answer, "__kwdefaults__", {"limit_s": 0.3})
    tool("nvidia-smi", "time.sleep(60)")
    start = time.monotonic()
    assert local_devices() == ()
    assert time.monotonic() - start < 10


def test_torch_is_asked_in_a_process_of_its_own(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("python-with-torch", printing("Intel(R) Arc(TM) B580 Graphics\t12168933376\n"))
    monkeypatch.setattr(local_machine, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-with-torch"))
    assert local_devices() == (Device("Intel(R) Arc(TM) B580 Graphics", 12),)


def test_several_equal_gpus_are_one_unless_the_user_says_more(tool: Tool) -> None:
    tool("nvidia-smi", printing("NVIDIA L40S, 46068\n" * 4))
    result = call(*WORKLOAD, "--hardware", "local", "--num-gpus", "4")
    assert result.exit_code == 0
    assert "4 x l40s" in result.stdout
    assert "note: this machine has 4 x NVIDIA L40S: l40s; one of them is taken unless" in result.stderr


def test_different_gpus_share_the_layers(tool: Tool) -> None:
    tool("nvidia-smi", printing("NVIDIA GeForce RTX 5080, 16303\nNVIDIA GeForce RTX 3090, 24576\n"))
    result = call(*WORKLOAD, "--hardware", "local")
    assert "on rtx-5080,rtx-3090" in result.stdout
    assert "layers are split by memory (40% on rtx-5080, 60% on rtx-3090)" in result.stderr


def test_an_unknown_gpu_is_named_with_the_nearest_ones(tool: Tool) -> None:
    tool("nvidia-smi", printing("NVIDIA H1000 80GB, 81559\n"))
    message = refused(*WORKLOAD, "--hardware", "local")
    assert "--hardware: expected a shipped profile (did you mean h100" in message
    assert "'NVIDIA H1000 80GB'" in message


# Lists.


def test_a_list_is_one_machine_and_its_name_resolves_again() -> None:
    document = answered(*WORKLOAD, "--hardware", "rtx 5080, NVIDIA GeForce RTX 3090")
    assert document["hardware"] == "rtx-5080,rtx-3090"
    again = answered(*WORKLOAD, "--hardware", document["hardware"])
    assert again["predicted_target_step_s"] == document["predicted_target_step_s"]


def test_a_list_may_repeat_a_gpu_and_have_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(shown("profiles", "rtx-3090"), encoding="utf-8")
    with pytest.warns(Note, match="layers are split by memory"):
        split = find_machine(f"rtx-3090,{file}")
    assert split is not None
    assert split.peak.memory_bytes == 4.8e10


@pytest.mark.parametrize(
    ("hardware", "more", "words"),
    [
        ("rtx-5080,rtx-3090", ["--num-gpus", "2"], "--num-gpus: expected 1, or nothing, beside a list in --hardware"),
        ("rtx-5080,", [], "--hardware: expected a shipped profile"),
        ("rtx-5080,nothing", [], "found 'nothing'"),
        (",".join(["rtx-3090"] * 65), [], "2 to 64 devices in a list, found 65"),
    ],
)
def test_a_list_that_is_none_is_refused(hardware: str, more: list[str], words: str) -> None:
    assert words in refused(*WORKLOAD, "--hardware", hardware, *more)


def test_a_clear_name_gives_no_note_and_an_unclear_one_does() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_machine("NVIDIA H100 80GB HBM3")
    with pytest.warns(Note, match="h100 is taken for h100-sxm; there are also h100-pcie, h100-nvl"):
        find_machine("h100")


def test_a_profile_is_printed_as_a_file_that_works(tmp_path: Path) -> None:
    file = tmp_path / "my-gpu.yaml"
    file.write_text(shown("profiles", "RTX 5080"), encoding="utf-8")
    assert (
        answered(*WORKLOAD, "--hardware", file)["predicted_target_step_s"]
        == (answered(*WORKLOAD, "--hardware", "rtx-5080")["predicted_target_step_s"])
    )
    assert "did you mean" in refused("profiles", "rtx-5085")
