"""Plans executed and acceptance measured: what `run` and `acceptance` answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.measurement import render_measurement
from magicdec.costmodel.plans.plan import load_plan
from magicdec.costmodel.plans.strategy import Strategy

from . import text
from .names import find_model

if TYPE_CHECKING:
    from magicdec.executor.model.tensor_parallel import Ranks


def run_document(
    plan_file: str,
    *,
    prompts: str,
    model_dir: str | None,
    draft_dir: str | None,
    max_new_tokens: int | None,
    stop: Sequence[str],
    compare: bool,
    repeats: int,
    device: str,
    measurements: str | None,
    output: str | None,
    texts_to_stdout: bool,
    stdin: IO[str],
    ranks: Ranks,
    **sampling: Any,
) -> tuple[dict[str, Any], str]:
    """Execute a plan on a prompts file; the measurement beside the prediction. `sampling` is that of `Sampling`.

    Of several processes that share the models, the first reads the prompts and writes the texts.
    """
    from magicdec.executor.engine.sampling import Sampling
    from magicdec.executor.generate import check_requests

    from . import running
    from .outputs import Outputs
    from .prompts import encode, read_prompts

    made = load_plan(plan_file)
    how = Sampling(**sampling)
    asked = ranks.agree(read_prompts(prompts, stdin) if ranks.leads else [])
    limit = max_new_tokens or made.workload.output_len
    loaded = running.load(made, model_dir=model_dir, draft_dir=draft_dir, device=device, ranks=ranks)
    if measurements is not None and ranks.leads:
        open(measurements, "a", encoding="utf-8").close()  # fail before the work, not after it
    prepared = encode(loaded.tokenizer, asked, stop)
    check_requests(prepared, loaded.target, limit, prompts)
    drafting = made.model_dump(mode="json", include={"strategy", "policy", "workload"})
    digests = running.text_digests(loaded, prepared, max_new_tokens=limit, sampling=how, drafting=[drafting])
    texts = output or ("-" if texts_to_stdout else None)
    with Outputs(texts if ranks.leads else None, digests) as outputs:
        done = ranks.agree(outputs.done)
        todo = prepared if compare else [prompt for prompt in prepared if prompt.id not in done]
        skipped = len(prepared) - len(todo)
        if not todo:
            document = {"strategy": asdict(made.strategy), "tokens": 0, "prompts_skipped": skipped, "differences": []}
            return document, f"all {skipped} texts are in {output} already"
        execution = running.execute(
            loaded,
            made.strategy,
            todo,
            batch_size=made.workload.batch_size,
            max_new_tokens=limit,
            compare=compare,
            repeats=repeats,
            policy=made.policy,
            sampling=how,
            hardware=made.hardware.name,
            where=prompts,
            write=outputs.write,
        )
    if measurements is not None and ranks.leads:
        with open(measurements, "a", encoding="utf-8") as file:
            file.write(render_measurement(execution.measurement) + "\n")
    document = {**running.document(execution, made), "prompts_skipped": skipped}
    if compare:
        return document, text.comparison_text(document)
    rate = document["acceptance_rate"]
    words = (
        f"{document['tokens']} tokens at {document['throughput_tokens_per_s']:.0f} tokens/s, "
        f"{document['mean_acceptance_length']:.2f} per round"
        + (f", acceptance {rate:.2f}" if rate is not None else "")
        + (f"; {skipped} texts were in {output} already" if skipped else "")
    )
    return document, words


def acceptance_document(*, model_dir: str, text_file: str | None, **sizes: Any) -> tuple[dict[str, Any], str]:
    """An acceptance curve of a self draft, as a curves file holds it; `sizes` are those of `measure_acceptance`."""
    from magicdec.executor.generate import check_runnable

    from . import running

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
    kv_policy, kv_dtype = sizes["kv_policy"], sizes["kv_dtype"]
    check_runnable(Strategy("self", kv_policy, None if kv_policy == "full" else 1, 1, None, kv_dtype), loaded.target, None)
    points = running.measured_points(loaded, tokens, **sizes)
    curve = {
        "target": found.config.name,
        "task": name,
        "draft_kind": "self",
        "kv_policy": kv_policy,
        **({"kv_dtype": kv_dtype} if kv_dtype else {}),
        "source": f"magicdec acceptance: {sizes['rows']} places, {max_new_tokens} new tokens each, gamma {sizes['gamma']}, greedy",
        "points": points,
    }
    rows_shown = [
        [
            str(p["context_len"]),
            str(p.get("kv_budget", "all")),
            f"{p['acceptance_rate']:.3f}",
            f"{p['standard_error']:.3f}",
        ]
        for p in points
    ]
    return curve, text.table(["context", "KV budget", "acceptance", "standard error"], rows_shown)
