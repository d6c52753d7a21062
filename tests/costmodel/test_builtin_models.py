"""The built-in models: each says where its config is from, and has the size that its name says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from magicdec.costmodel.models.catalog import builtin_configs, resolve_model

# Names that round more than 3 % (8 %): billions of parameters in all and active, as the publisher counts them.
COUNTED: dict[str, tuple[float | None, float | None]] = {
    "ERNIE-4.5-21B-A3B": (21.83, 3.35),
    "GLM-4-9B": (9.4, None),
    "Gemma-2-2B": (2.61, None),
    "Gemma-3n-E4B": (6.87, 4.5),  # the name says what is active
    "Gemma-4-E2B": (5.1 - 0.45, 2.3),  # 5.1 with the encoders
    "Gemma-4-E4B": (8.0 - 0.45, 4.5),
    "InternLM3-8B": (8.8, None),
    "Llama-2-7B": (6.74, None),
    "Llama-2-7B-32K": (6.74, None),
    "Llama-3.2-1B": (1.24, None),
    "Llama-3.2-3B": (3.21, None),
    "MiMo-7B": (7.6, None),
    "Ministral-3-8B": (8.4, None),
    "Mistral-7B-v0.1": (7.24, None),
    "Mistral-7B-v0.3": (7.25, None),
    "Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.2),
    "Nemotron-3-Nano-30B-A3B-NVFP4": (31.6, 3.2),
    "Nemotron-3.5-Lightning-30B-A3B-NVFP4": (31.6, 3.2),
    "Olmo-3-7B": (7.3, None),
    "Qwen2-7B": (7.62, None),
    "Qwen2.5-14B": (14.7, None),
    "Qwen2.5-7B": (7.61, None),
    "Qwen3-14B": (14.8, None),
    "Qwen3-Next-80B-A3B": (80, 3.6),
    "Qwen3-VL-2B": (1.7, None),  # without its encoder
    "Sheared-LLaMA-1.3B": (1.35, None),
}


WITHOUT_ADDRESS = ("Seed-OSS-36B", "MiniCPM5-2B")  # the source says in words where the dimensions come from


def promised(name: str) -> tuple[float | None, float | None]:
    """Billions of parameters in all and active, as the name or the publisher says."""
    if name in COUNTED:
        return COUNTED[name]
    mixtral = re.search(r"-(\d+)x([0-9.]+)B", name)
    found = re.search(r"-([0-9.]+)([BM])(?:-A([0-9.]+)B)?(?:-|$)", name)
    if mixtral or found is None or "16E" in name or "128E" in name:
        return None, None
    scale = 1e-3 if found[2] == "M" else 1.0
    return float(found[1]) * scale, float(found[3]) if found[3] else None


@pytest.mark.parametrize("name", builtin_configs())
def test_a_built_in_model_states_its_source_and_has_the_size_of_its_name(name: str) -> None:
    raw = json.loads(builtin_configs()[name].read_text(encoding="utf-8"))
    assert re.search(r"https://(huggingface\.co|github\.com)/[\w.-]+/[\w.-]+", raw["source"]) or name in WITHOUT_ADDRESS
    model = resolve_model(name)
    total, active = promised(name)
    assert total is None or model.params == pytest.approx(total * 1e9, rel=0.03)
    counted = (model.active_params, model.active_params + model.embedding_params)  # names count the embedding or not
    assert active is None or any(count == pytest.approx(active * 1e9, rel=0.08) for count in counted)


def test_the_documentation_lists_the_built_in_models() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    section = page.partition("## Built-in models")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[1].rstrip(" |") for line in section.splitlines() if line.startswith("| ")][1:]
    assert sorted(name for row in rows for name in row.split(", ")) == sorted(builtin_configs())
    assert f"\n{len(builtin_configs())} configs" in section
