"""The GPU path, tested without a GPU: no mixing of host and device tensors, one wait per round, replayable passes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from decoding import requests_of
from pretend_gpu import GPU, PretendedGpu, moved, pretended_graphs
from tiny_models import perturbed, random_prompts, tiny_model
from torch import Tensor

from magicdec.costmodel.plans.strategy import CompressedDtype, Strategy
from magicdec.executor import decode_loop
from magicdec.executor.drafting.factory import make_policy
from magicdec.executor.engine import model_runner
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.sampling import GREEDY, Sampling
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE, make_batch, run
from magicdec.executor.kv import attention
from magicdec.executor.measuring.comparison import Comparison, compare
from magicdec.executor.model.transformer import Transformer

DRAFTS = [(kind, policy) for kind, policy in RUNNABLE if (kind, policy) != ("self", "full")]
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=5)


def plain_kernel(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor, window: int | None) -> Tensor:
    """What the GPU kernel computes, over the whole cache at once."""
    group = q_BNTH.shape[1] // k_BKSH.shape[1]
    seen_BTS = attention.visible(positions_BT, torch.arange(k_BKSH.shape[2], device=q_BNTH.device), window)
    k_BNSH, v_BNSH = k_BKSH.repeat_interleave(group, 1), v_BKSH.repeat_interleave(group, 1)
    scores_BNTS = q_BNTH @ k_BNSH.transpose(2, 3) * q_BNTH.shape[3] ** -0.5
    return scores_BNTS.masked_fill(~seen_BTS[:, None], float("-inf")).softmax(-1) @ v_BNSH


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    pretended = PretendedGpu()
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for name, value in {"mem_get_info": (2**40, 2**40), "memory_reserved": 0, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(attention, "_kernel", lambda device, dtype, width: plain_kernel if device.type == "cuda" else None)
    monkeypatch.setattr(decode_loop, "record_time", lambda device: time.perf_counter())
    capture, replay = pretended_graphs(pretended)
    monkeypatch.setattr(model_runner, "capture", capture)
    monkeypatch.setattr(model_runner, "replay", replay)
    return pretended


@dataclass
class Run:
    """The outputs of a run, and how often the host had waited after each round."""

    outputs: list[list[int]] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


def decoded(gpu: PretendedGpu | None, target: Transformer, draft: Transformer, strategy: Strategy, sampling: Sampling) -> Run:
    found = Run()
    requests = requests_of(random_prompts((1, 9, 40)))
    batch = Batch(target, requests, GenerationSettings(22, sampling=sampling), gamma=strategy.gamma)
    batch.prefill()
    done: dict[int, list[int]] = {}
    for one in decode_loop.decode(batch, make_policy(strategy, batch, draft)):
        found.waits.append(len(gpu.waits) if gpu is not None else 0)
        done |= {completion.request_index: completion.tokens for completion in one.completions}
    found.outputs = [done[index] for index in range(len(requests))]
    return found


def models() -> tuple[Transformer, Transformer]:
    target = tiny_model()
    return target, perturbed(target, 0.06)


def strategy_of(kind: str, policy: str, gamma: int = 3) -> Strategy:
    budget = None if policy == "full" else 20
    return Strategy(kind, policy, budget, gamma if kind != "none" else 0, "small" if kind == "model" else None)


GREEDY_RUNS = [(kind, policy, GREEDY) for kind, policy in DRAFTS]
SAMPLED_RUNS = [
    (kind, policy, SAMPLED) for kind, policy in (("none", "full"), ("ngram", "full"), ("self", "topk"), ("model", "snapkv"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy", "sampling"), GREEDY_RUNS + SAMPLED_RUNS)
def test_every_draft_gives_the_same_on_a_gpu_as_on_a_cpu_and_waits_once_per_round(
    gpu: PretendedGpu, kind: str, policy: str, sampling: Sampling
) -> None:
    strategy = strategy_of(kind, policy)
    expected = decoded(None, *models(), strategy, sampling)
    with gpu:
        found = decoded(gpu, *map(moved, models()), strategy, sampling)
    assert found.outputs == expected.outputs
    rounds = [after - before for before, after in pairwise(found.waits)]
    assert len(rounds) >= 5
    assert rounds == [1] * len(rounds), gpu.waits
    drafts_replay = (kind, policy) not in {("none", "full"), ("ngram", "full")} and policy not in ("topk", "quest")
    assert gpu.replayed >= len(rounds) * (1 + drafts_replay * strategy.gamma)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_compressed_cache_works_on_a_gpu_too(gpu: PretendedGpu, kv_dtype: CompressedDtype) -> None:
    strategy = Strategy("self", "full", None, 3, None, kv_dtype)
    expected = decoded(None, *models(), strategy, GREEDY)
    with gpu:
        found = decoded(gpu, *map(moved, models()), strategy, GREEDY)
    assert found.outputs == expected.outputs
    assert {after - before for before, after in pairwise(found.waits)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), [("self", "snapkv"), ("model", "full")])
def test_a_comparison_on_a_gpu_counts_no_turn_in_which_passes_are_captured(gpu: PretendedGpu, kind: str, policy: str) -> None:
    told: list[int] = []

    def compared(target: Transformer, draft: Transformer) -> Comparison:
        strategy = strategy_of(kind, policy)
        batch = make_batch(target, requests_of(random_prompts((9, 40))), strategy, GenerationSettings(12))
        batch.prefill()
        return compare(batch, draft, strategy, on_round=lambda one: told.append(one.emitted))

    expected = compared(*models())
    told.clear()
    with gpu:
        found = compared(*map(moved, models()))
    assert found.log.outputs == found.autoregressive.outputs == expected.log.outputs
    assert sum(told) == 2 * 2 * 12, "an autoregressive and a speculative run of two rows, once each"
    assert found.log.accepted_by_position == expected.log.accepted_by_position


def test_rows_come_and_go_on_a_gpu(gpu: PretendedGpu) -> None:
    """Requests of different lengths and limits share rows; in the end idle rows are dropped."""
    strategy, (target, draft) = strategy_of("self", "snapkv"), models()
    requests = [Request(str(n), tokens, 3 + 5 * n) for n, tokens in enumerate(random_prompts((5, 33, 2, 48, 17)))]
    expected = run(target, draft, requests, strategy, GenerationSettings(30), batch_size=3).outputs
    with gpu:
        found = run(moved(target), moved(draft), requests, strategy, GenerationSettings(30), batch_size=3)
    assert found.outputs == expected
    assert gpu.replayed > 20


def test_the_pretended_gpu_enforces_the_rules() -> None:
    host = torch.arange(4)
    with PretendedGpu() as gpu:
        there = torch.arange(4, device=GPU)
        assert there.device.type == "cuda"
        assert (there + 1).cpu().tolist() == [1, 2, 3, 4]
        assert len(gpu.waits) == 1
        for waiting in (
            lambda: bool((there > 1).any()),
            lambda: int(there[2]),
            lambda: there[there > 1],
            lambda: there[host],
            lambda: host.to(GPU),
            lambda: there.copy_(host),
            lambda: there.masked_select(there > 1),
        ):
            before = len(gpu.waits)
            waiting()
            assert len(gpu.waits) == before + 1
        before = len(gpu.waits)
        sent = host.to(GPU, non_blocking=True)
        there[sent] = sent + 1
        assert len(gpu.waits) == before
        with pytest.raises(AssertionError, match="some on the host"):
            there + host
        gpu.capturing = True
        for forbidden in (lambda: host.to(GPU, non_blocking=True), lambda: there.cpu(), lambda: bool(there.any())):
            with pytest.raises(AssertionError, match="captured"):
                forbidden()
        gpu.capturing = False
        there.cpu()
