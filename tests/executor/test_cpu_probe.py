"""Probing this machine: the model is reproducible, and every pass is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY

from magicdec.executor.measuring import cpu_probe as probe
from magicdec.executor.measuring.cpu_probe import num_measurements, probe_cpu, random_model


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"qk_norm": True}, {"qkv_bias": True}], ids=str)
def test_a_random_model_depends_on_its_seed_alone(changes: dict[str, bool]) -> None:
    config = replace(TINY, dtype="float32", **changes)
    torch.manual_seed(1)
    first = random_model(config).state_dict()
    torch.manual_seed(2)
    again = random_model(config).state_dict()
    other = random_model(config, seed=7).state_dict()
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_random_model_is_ready_for_inference_and_finite() -> None:
    model = random_model(replace(TINY, dtype="float32"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = model.logits(model(torch.arange(9)[None], torch.arange(9)[None]))
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0


def test_every_pass_is_measured_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(probe, "CONTEXT_LENS", (8, 16))
    monkeypatch.setattr(probe, "QUERY_LENS", (1, 3))
    monkeypatch.setattr(probe, "_product_rates", lambda: {"float32": 1e9})
    monkeypatch.setattr(probe, "read_rate", lambda: 1e10)
    told: list[None] = []
    found = probe_cpu(replace(TINY, dtype="float32"), progress=lambda: told.append(None))
    shapes = [(taken.batch_size, taken.context_len, taken.query_len) for taken in found.passes]
    assert shapes == [(b, s, t) for b in (1, 2) for s in (8, 16) for t in (1, 3)]
    assert all(taken.measured_s > 0 for taken in found.passes)
    assert found.round_overhead_s > 0
    assert found.memory_bytes > 0
    assert found.cache_bytes > 0
    assert (found.flop_per_s, found.memory_bandwidth_bytes_per_s) == ({"float32": 1e9}, 1e10)
    assert len(told) == num_measurements()
