"""What each command answers: a document for programs and a text for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from costmodel.errors import bad
from costmodel.hardware import builtin_profiles, resolve_profile
from costmodel.plan import Plan, load_plan
from costmodel.roofline import VERIFY_KERNELS, VerifyKernel
from costmodel.search import GAMMAS, Candidate
from costmodel.strategy import Strategy
from costmodel.transformer import builtin_configs
from costmodel.units import format_bytes, format_rate, format_seconds
from costmodel.workload import Workload
from magicdec import __version__, text
from magicdec.api import ask, describe, make_plan, predict
from magicdec.names import DEFAULT_KV_BUDGET, REFERENCE, find_draft, find_model


def prediction_document(
    *,
    model: str,
    hardware: str,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_size: int,
    context_len: int,
    draft: str,
    kv_policy: str | None,
    kv_budget: int | None,
    gamma: int | None,
    acceptance_rate: float | None,
    mean_acceptance_length: float | None,
    verify_kernel: str,
) -> dict[str, Any]:
    """What `predict` prints for one situation."""
    if verify_kernel not in VERIFY_KERNELS:
        raise bad("--verify-kernel", "", " or ".join(get_args(VerifyKernel)), repr(verify_kernel))
    if mean_acceptance_length is not None and gamma is not None and mean_acceptance_length > gamma + 1:
        expected = f"at most gamma + 1 = {gamma + 1} tokens per round"
        raise bad("--mean-acceptance-length", "", expected, mean_acceptance_length)
    where: dict[str, Any] = {"num_gpus": num_gpus, "tensor_parallel": tensor_parallel, "verify_kernel": verify_kernel}
    question = ask(model, hardware, **where)
    found = find_draft(draft, kv_policy, question.setup.hardware, kv_budget)
    _refuse_useless(found.kind, gamma=gamma, kv_budget=kv_budget, acceptance_rate=acceptance_rate, length=mean_acceptance_length)
    if found.kind == "none":
        strategy = Strategy()
        evaluation = predict(model, hardware, batch_size=batch_size, context_len=context_len, draft="none", **where)
    else:
        if mean_acceptance_length is not None and gamma is None:
            raise bad("--gamma", "", "a value beside --mean-acceptance-length, which belongs to one gamma", "nothing")
        evaluation = predict(
            model,
            hardware,
            batch_size=batch_size,
            context_len=context_len,
            draft=draft,
            kv_policy=kv_policy,
            kv_budget=kv_budget,
            gamma=gamma,
            acceptance_rate=acceptance_rate,
            mean_acceptance_length=mean_acceptance_length,
            **where,
        )
        strategy = Strategy(
            draft_kind=found.kind,
            kv_policy=found.kv_policy,
            kv_budget=None if found.kv_policy == "full" else (kv_budget or DEFAULT_KV_BUDGET),
            gamma=int(evaluation.round.gamma),
            draft_model=found.model.name if found.model else None,
        )
    candidate = Candidate(strategy, batch_size, evaluation, ())
    document = describe(question, candidate, Workload(batch_size, context_len, 1), found.model)
    document["workload"].pop("output_len", None)
    return document


def _refuse_useless(kind: str, *, length: float | None, **options: object) -> None:
    """Options that would have no effect are mistakes: say so."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if kind == "none" and given:
        raise bad(given[0], "", "nothing beside --draft none, which drafts nothing", ", ".join(given))
    if length is not None and options["acceptance_rate"] is not None:
        raise bad("--mean-acceptance-length", "", "no --acceptance-rate beside it: one of the two", "both")


def plan_document(
    *,
    model: str,
    hardware: str,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_sizes: Sequence[int],
    context_len: int,
    output_len: int,
    drafts: Sequence[str],
    objective: str | None,
    max_tpot_s: float | None,
    gammas: Sequence[int] | None,
    kv_budgets: Sequence[int] | None,
    acceptance_rate: float | None,
) -> tuple[Plan, str]:
    """The plan that `plan` writes and what it prints: the candidates, best of each kind first, and the verdict."""
    question = ask(model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel)
    workload = Workload(batch_sizes[0], context_len, output_len)
    made, ranked = make_plan(
        question,
        workload,
        drafts=drafts,
        batch_sizes=batch_sizes,
        objective=objective or ("throughput" if len(batch_sizes) > 1 else "latency"),
        max_tpot_s=max_tpot_s,
        gammas=gammas or GAMMAS,
        kv_budgets=kv_budgets,
        acceptance_rate=acceptance_rate,
    )
    shown = best_of_each(ranked)
    rows = [
        [
            text.strategy_words(vars(candidate.strategy)),
            str(candidate.batch_size),
            format_seconds(candidate.tpot_s),
            f"{candidate.throughput_tokens_per_s:.0f}",
            f"{candidate.speedup:.2f}x",
            format_bytes(candidate.memory_bytes),
        ]
        for candidate in shown
    ]
    header = ["strategy, best first", "batch", "per token", "tokens/s", "speedup", "memory per GPU"]
    facts = {**made.prediction.model_dump(), "strategy": asdict(made.strategy), "fits_in_memory": True}
    facts["runner_up"] = made.runner_up.model_dump() if made.runner_up else None
    notes = [f"note: {note}" for note in made.notes]
    return made, "\n".join([text.table(header, rows), "", *notes, "", text.verdict(facts)])


def best_of_each(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of every kind of draft, in order."""
    first: dict[Any, Candidate] = {}
    for candidate in ranked:
        first.setdefault(candidate.strategy.family, candidate)
    return list(first.values())


def run_document(
    plan_file: str,
    *,
    prompts: str,
    model_dir: str | None,
    draft_dir: str | None,
    max_new_tokens: int | None,
    compare: bool,
    repeats: int,
    device: str,
    measurements: str | None,
    output: str | None,
    texts_to_stdout: bool,
    stdin: IO[str],
) -> tuple[dict[str, Any], str]:
    """Execute a plan on a prompts file; the measurement beside the prediction."""
    from executor.run import check_prompts
    from magicdec import running
    from magicdec.files import output_file

    made = load_plan(plan_file)
    asked = running.read_prompts(prompts, stdin)
    loaded = running.load(made, model_dir=model_dir, draft_dir=draft_dir, device=device)
    if measurements is not None:
        open(measurements, "a", encoding="utf-8").close()  # fail before the work, not after it
    prepared = running.encode(loaded.tokenizer, asked)
    check_prompts(prepared, loaded.target, max_new_tokens or made.workload.output_len, prompts)
    sink_path = output or ("-" if texts_to_stdout else None)
    with output_file(sink_path) as sink:
        execution = running.execute(
            loaded,
            made.strategy,
            prepared,
            batch_size=made.workload.batch_size,
            max_new_tokens=max_new_tokens or made.workload.output_len,
            compare=compare,
            repeats=repeats,
            hardware=made.hardware.name,
            where=prompts,
            sink=sink,
        )
    if measurements is not None:
        with open(measurements, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(execution.measurement)) + "\n")
    document = running.document(execution, made)
    if compare:
        return document, text.comparison_text(document)
    rate = document["acceptance_rate"]
    words = (
        f"{document['tokens']} tokens at {document['throughput_tokens_per_s']:.0f} tokens/s, "
        f"{document['mean_acceptance_length']:.2f} per round" + (f", acceptance {rate:.2f}" if rate is not None else "")
    )
    return document, words


def acceptance_document(*, model_dir: str, text_file: str | None, **sizes: Any) -> tuple[dict[str, Any], str]:
    """An acceptance curve of a self draft, as a curves file holds it; `sizes` are those of `measure_acceptance`."""
    from magicdec import running

    context_lens, max_new_tokens = sizes["context_lens"], sizes["max_new_tokens"]

    found = find_model(model_dir)
    loaded = running.load_checkpoint("--model-dir", model_dir)
    name, tokens = running.real_text(loaded.tokenizer, text_file)
    longest = max(context_lens) + max_new_tokens
    if longest > found.config.max_context_len:
        expected = f"at most the {found.config.max_context_len} positions of {model_dir}"
        raise bad("--context-lens", "", expected, f"{longest} with the new tokens")
    if len(tokens) < max(context_lens):
        raise bad(text_file or "text", "", f"at least {max(context_lens)} tokens, the longest context", f"{len(tokens)} tokens")
    points = running.measured_points(loaded, tokens, **sizes)
    curve = {
        "target": found.config.name,
        "task": name,
        "draft_kind": "self",
        "kv_policy": "streaming_llm",
        "source": f"magicdec acceptance: {sizes['rows']} places, {max_new_tokens} new tokens each, gamma {sizes['gamma']}, greedy",
        "points": points,
    }
    rows_shown = [
        [str(p["context_len"]), str(p["kv_budget"]), f"{p['acceptance_rate']:.3f}", f"{p['standard_error']:.3f}"] for p in points
    ]
    return curve, text.table(["context", "KV budget", "acceptance", "standard error"], rows_shown)


def write_report(
    folder: Path,
    *,
    files: Sequence[str],
    model: str | None,
    hardware: str | None,
    num_gpus: int | None,
    tensor_parallel: int | None,
    batch_sizes: Sequence[int],
    context_lens: Sequence[int],
    draft: str,
    kv_policy: str | None,
    kv_budget: int,
    ridges: Sequence[str],
) -> list[Path]:
    """Draw every planning figure and, for each pair of plan and measurement, predicted beside measured.

    Model and machine are those of the first plan, unless they are given.
    """
    from reports.page import write_page
    from reports.planning import Map, planning_figures
    from reports.runs import read_runs, run_figures

    runs, plans = read_runs(files)
    planned = plans[0] if plans else None
    question = ask(
        model or (planned.target.name if planned else "llama-3.1-8b"),
        hardware or (planned.hardware.name if planned else "h100-sxm"),
        num_gpus=num_gpus or (planned.hardware.num_gpus if planned else 8),
        tensor_parallel=tensor_parallel or (planned.hardware.tensor_parallel if planned and num_gpus is None else None),
    )
    found = find_draft(draft, kv_policy, question.setup.hardware, kv_budget)
    if found.kind == "none":
        raise bad("--draft", "", "`self` or a model: the figures are about drafting", "none")
    batches, contexts = np.array(sorted(set(batch_sizes))), np.array(sorted(set(context_lens)))
    drawn = Map(
        setup=question.setup,
        draft=found,
        batch_sizes=batches,
        context_lens=contexts,
        kv_budget=float("inf") if found.kv_policy == "full" else kv_budget,
        curves=question.model.curves,
        ridges=tuple(resolve_profile(name) for name in ridges),
    )
    return write_page(folder, [*planning_figures(drawn), *run_figures(runs)], drawn, runs, plans)


def list_profiles() -> tuple[list[dict[str, Any]], str]:
    """Every shipped profile."""
    documents, rows = [], []
    for name in builtin_profiles():
        profile = resolve_profile(name)
        peak = profile.peak
        rate = profile.flop_per_s("bfloat16")
        fit = profile.calibration.fit
        documents.append(
            {
                "name": name,
                "description": profile.description,
                "aliases": list(profile.aliases),
                "peak": asdict(peak),
                "calibrated": profile.calibrated,
                "calibration": asdict(profile.calibration),
                "sources": profile.sources,
            }
        )
        rows.append(
            [
                name,
                format_rate(rate, "FLOP/s"),
                format_rate(peak.memory_bandwidth_bytes_per_s, "B/s"),
                format_bytes(peak.memory_bytes),
                f"{profile.ridge_point('bfloat16'):.0f} FLOP/B",
                f"calibrated, {fit.mean_error:.1%} mean error" if fit else "datasheet, default efficiencies",
            ]
        )
    header = ["profile", "dense bf16", "bandwidth", "memory", "ridge point", "prices"]
    return documents, text.table(header, rows) + "\n\n`cpu` is this machine, measured when first used."


def list_models() -> tuple[list[dict[str, Any]], str]:
    """The reference model and every built-in configuration."""
    documents, rows = [], []
    for name in (REFERENCE, *builtin_configs()):
        config = find_model(name).config
        facts = {
            "name": name,
            "family": config.family,
            "params": config.params,
            "weight_bytes": config.weight_bytes,
            "kv_bytes_per_token": config.kv_bytes_per_token,
            "max_context_len": config.max_context_len,
        }
        documents.append(facts)
        rows.append(
            [
                name,
                format_rate(config.params, ""),
                format_bytes(config.weight_bytes),
                format_bytes(config.kv_bytes_per_token),
                f"{config.num_heads}/{config.num_kv_heads}",
                str(config.max_context_len),
            ]
        )
    header = ["model", "parameters", "weights", "KV per token", "heads/KV heads", "positions"]
    return documents, text.table(header, rows)


def describe_environment() -> tuple[dict[str, Any], str]:
    """Versions and machine."""
    from importlib.metadata import PackageNotFoundError, version

    from executor.measure import environment
    from magicdec.names import cpu_profile_file

    facts = {"magicdec": __version__, **environment()}
    for package in ("numpy", "scipy", "pandas", "pydantic", "click", "safetensors", "tokenizers", "matplotlib"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    facts["cpu_profile"] = str(cpu_profile_file()) if cpu_profile_file().is_file() else "not measured yet"
    return facts, text.table(["", ""], [[name, str(value)] for name, value in facts.items()])
