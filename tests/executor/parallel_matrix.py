"""Every draft on tiny checkpoints, in one process or several: what test_parallel.py compares.

As a script it is one of the processes of a group: parallel_matrix.py FOLDER. Each writes what it emitted, and the names of its
threads at the end, to FOLDER/<rank>.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tiny_models import random_prompts

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.sampling import GREEDY, Sampling
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE, run
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.tensor_parallel import Ranks, process_group

KV_HEADS = {"split": 2, "replicated": 1}  # one per process, and one that both hold
# Where both hold one KV head, each selects KV entries by half of the queries: drafts differ, so samples would differ.
CASES = {
    ("split", "greedy"): GREEDY,
    ("split", "sampled"): Sampling(temperature=0.9, top_p=0.95, seed=3),
    ("replicated", "greedy"): GREEDY,
}


def strategies(checkpoint: str = "split", tokens: str = "greedy") -> list[Strategy]:
    """Every strategy for greedy tokens of the split checkpoint; elsewhere those that differ there."""
    kinds = [
        Strategy(kind, policy, None if policy == "full" else 12, 3, "small" if kind == "model" else None)
        for kind, policy in RUNNABLE
        if (kind, policy) not in (("self", "full"), ("none", "full"))
    ]
    compressed = [Strategy("self", "full", None, 3, None, dtype) for dtype in ("int8", "int4", "fp8")]
    if tokens == "sampled":
        return [Strategy(), *{kind.draft_kind: kind for kind in kinds}.values(), compressed[0]]
    if checkpoint == "replicated":
        return [Strategy(), *(kind for kind in kinds if kind.draft_kind == "self")]
    return [Strategy(), *kinds, *compressed]


def run_matrix(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Per case and strategy: the tokens of five prompts in three rows, and the numbers of drafted and accepted tokens."""
    prompts = [Request(str(row), tokens) for row, tokens in enumerate(random_prompts((1, 17, 30, 9, 40)))]
    found = {}
    for (checkpoint, tokens), sampling in CASES.items():
        target, draft = (load_model(folder / checkpoint / role, ranks=ranks) for role in ("target", "draft"))
        found[checkpoint] = asdict(target.config)
        for strategy in strategies(checkpoint, tokens):
            result = run(target, draft, prompts, strategy, GenerationSettings(9, sampling=sampling), batch_size=3)
            counts = sum(result.log.drafted_by_position), sum(result.log.accepted_by_position)
            found[f"{checkpoint}, {tokens}, {strategy}"] = [result.outputs, *counts]
    return found


def threads() -> list[str]:
    """The names of this process's threads."""
    return [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    with process_group("cpu") as ours:
        found = run_matrix(place, ours)
        import torch._dynamo
    found["threads"] = threads()
    (place / f"{ours.rank}.json").write_text(json.dumps(found))
