"""Execute a plan on prompts and measure it beside the prediction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from magicdec.costmodel.base.errors import bad, called
from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.plans.measurement import load_measurements, render_measurement
from magicdec.costmodel.plans.plan import Plan
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.sampling import Sampling
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.engine.stop_strings import StopStrings
from magicdec.executor.generate import check_requests
from magicdec.executor.model.tensor_parallel import Ranks, process_group

from ..files.completions import Completion, CompletionFile, digest
from ..files.prompts import PromptText, check_ids, encode, plain_text, read_prompts
from ..files.writing import append_line
from ..inputs.checks import flag, one_of, optional_text, text, whole_number
from ..inputs.plans import resolve_plan
from ..results.plan import PlanResult
from ..results.run import RunResult
from ..running.checkpoints import LoadedModels, load_models
from ..running.execution import Job, execute

DEVICES = ("cpu", "cuda")


def run(
    plan: str | Path | Plan | PlanResult,
    prompts: str | Path | Sequence[str | PromptText],
    *,
    model_dir: str | None = None,
    draft_dir: str | None = None,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    compare: bool = False,
    repeats: int = 1,
    device: str = "cpu",
    measurements: str | None = None,
    output: str | None = None,
) -> RunResult:
    """Execute a plan on prompts and measure it beside the prediction.

    Under torchrun, the processes share the models by tensor parallelism; the first one reads prompts and writes files.

    Args:
        plan: A plan or a plan file.
        prompts: A prompts file (`-` for standard input), or the prompts themselves.
        model_dir, draft_dir: Checkpoints of target and draft; None for the plan's own.
        max_new_tokens: New tokens per prompt; None for the plan's output length. [tokens]
        stop: Strings that end a completion and are left out of it.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_k: Top-k sampling; None for all tokens. [tokens]
        top_p: Nucleus sampling: the smallest set of tokens that reaches this probability. [0-1]
        min_p: Drop tokens below this share of the top probability. [0-1]
        seed: Sampling seed; each prompt draws by its own id.
        compare: Also decode autoregressively, compare the outputs and measure the speedup.
        repeats: Turns of a comparison; medians are reported.
        device: `cpu` or `cuda`.
        measurements: Append the measurement to this file.
        output: Append completions to this file as JSON lines (`-` for standard output); prompts already present are skipped.

    Raises:
        InputError: A file is wrong, a checkpoint is not the planned one, a prompt is too long, or memory does not suffice.
    """
    made = plan.plan if isinstance(plan, PlanResult) else resolve_plan(plan)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    one_of("device", text("device", device), DEVICES)
    repeats = whole_number("repeats", repeats)
    if not flag("compare", compare) and repeats > 1:
        raise bad("repeats", "", "`compare` beside it, whose turns it counts", "nothing")
    if draft_dir is not None and made.draft is None:
        raise bad("draft_dir", "", "a plan with a draft model", str(made.strategy))
    stops = tuple(plain_text(one, "stop") for one in ([stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else stop))
    model_dir, draft_dir = optional_text("model_dir", model_dir), optional_text("draft_dir", draft_dir)
    measurements, output = optional_text("measurements", measurements), optional_text("output", output)
    limit = made.workload.output_len if max_new_tokens is None else whole_number("max_new_tokens", max_new_tokens)
    with called("plan", str(plan) if isinstance(plan, str | Path) else "plan"), process_group(device) as ranks:
        texts = ranks.broadcast(_prompt_texts(prompts) if ranks.is_rank0 else [])
        models = load_models(made, model_dir=model_dir, draft_dir=draft_dir, device=device, ranks=ranks)
        if measurements is not None and ranks.is_rank0:
            _check_measurements(measurements)  # fail before the work, not after it
        requests = encode(models.tokenizer, texts, stops)
        check_requests(requests, models.target, limit, prompts if isinstance(prompts, str) else "prompts")
        settings = GenerationSettings(
            limit,
            stop_tokens=models.stop_tokens,
            stop_strings=StopStrings(models.tokenizer) if any(request.stop_strings for request in requests) else None,
            sampling=sampling,
        )
        job = Job(made.strategy, made.workload.batch_size, made.policy, made.hardware.name, compare, repeats)
        result = _run(made, models, requests, job, settings, output)
        if measurements is not None and result.measurement is not None and ranks.is_rank0:
            append_line(measurements, render_measurement(result.measurement))
    return result


def _check_measurements(path: str) -> None:
    """Check that a file of measurements can be continued; one that holds anything else is left alone."""
    append_line(path, "")
    if os.path.isfile(path) and os.path.getsize(path):
        load_measurements(path)


def _prompt_texts(prompts: str | Path | Sequence[str | PromptText]) -> list[PromptText]:
    if isinstance(prompts, str | Path):
        return read_prompts(str(prompts))
    if not isinstance(prompts, Sequence):
        raise bad("prompts", "", "a prompts file, or a list of prompts", repr(prompts))
    texts = [
        text if isinstance(text, PromptText) else PromptText(str(number), plain_text(text, f"prompts: {number}"))
        for number, text in enumerate(prompts, 1)
    ]
    return check_ids(texts, "prompts")


def _run(
    plan: Plan, models: LoadedModels, requests: Sequence[Request], job: Job, settings: GenerationSettings, output: str | None
) -> RunResult:
    """Execute the requests that the output file does not have yet; of a comparison, all."""
    ranks: Ranks = models.ranks
    completions: list[Completion] = []
    digests = completion_digests(plan, models, requests, settings)
    with CompletionFile(output if ranks.is_rank0 else None, digests) as file:
        present = ranks.broadcast(file.present)
        todo = list(requests) if job.compare else [request for request in requests if request.id not in present]
        skipped = len(requests) - len(todo)
        if not todo:
            return RunResult(plan, None, prompts_skipped=skipped, output=output, is_rank0=ranks.is_rank0)
        execution = execute(models, todo, job, settings, file.append if output is not None else completions.append)
    return RunResult(
        plan,
        execution.measurement,
        execution.differences,
        tuple(completions),
        skipped,
        output,
        is_rank0=ranks.is_rank0,
    )


def completion_digests(
    plan: Plan, models: LoadedModels, requests: Sequence[Request], settings: GenerationSettings
) -> dict[str, str]:
    """By request id, a digest of everything that its completion depends on.

    Greedy completions do not depend on the draft, samples do.
    """
    common: list[object] = [models.digests[:1], list(models.stop_tokens)]
    if not settings.sampling.greedy:
        drafting = {key: value for key, value in to_document(plan).items() if key in ("strategy", "policy", "workload")}
        common += [asdict(settings.sampling), models.digests[1:], [drafting]]
    return {
        request.id: digest(common, request.tokens, request.max_new_tokens or settings.max_new_tokens, list(request.stop_strings))
        for request in requests
    }
