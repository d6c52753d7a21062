"""Time per output token of a serving benchmark under load, prefills of other requests included."""

from __future__ import annotations

import math

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.memory import memory_of

from .columns import Cells, whole

LOAD_ERROR = 0.35  # half width of its interval: GLM-5-FP8 on 8 H200, 52 rows, is off by 20 % at the median and 33 % at worst


def is_under_load(row: Cells) -> bool:
    """Whether the row is of a closed loop: so many requests at once, each with a prompt and an output of given lengths."""
    return {"isl", "osl", "concurrency"} <= set(row) and any("ttft" in name for name in row)


def loaded_tpot_s(row: Cells, deployment: Deployment) -> float:
    """Time per output token while other requests come and go. [s]

    Each of the r requests that run is replaced when it ends. While one of them decodes its osl tokens, each of the r - 1 others
    is replaced once, and its prompt is read while all wait:

        time per token = step at r + (r - 1) x prefill(isl) / osl

    r is the concurrency, or what fits in memory; the rest queues.

    Args:
        row: The cells, by column.
        deployment: Model, machine and engine.

    Raises:
        InputError: The row does not say how long requests are, or its model has prompts that are not priced well enough.
    """
    prompt, output, most = whole({"context": row["isl"]}, "context"), whole({"context": row["osl"]}, "context"), whole(row, "batch")
    if not prompt or not output or not most:
        raise bad("isl, osl, concurrency", "", "lengths of the requests and how many ran at once", "nothing")
    target = deployment.target
    if target.recurrents:
        expected = (
            "a model without recurrent layers: under load a token waits for prompts of others, and theirs are not priced well"
        )
        raise bad("median_tpot_s", "", expected, target.name)
    memory = memory_of(
        target,
        batch_size=np.arange(1, most + 1),
        max_context_len=prompt + output,
        gamma=0,
        kv_budget=math.inf,
        tensor_parallel=deployment.tensor_parallel,
        draft=Draft(),
        head_sharded=deployment.hardware.calibration.engine.head_sharded,
    )
    running = max(1, int(memory.fits(deployment.hardware).sum()))
    server = deployment.hardware.calibration.engine
    step_s = float(deployment.pass_time(running, 1, prompt + output / 2).total_s)
    waiting_s = (running - 1) * float(deployment.ttft_s(prompt)) / output
    return step_s + server.server_step_s + running * server.server_token_s + waiting_s
