"""Valid inputs of every kind, made by the project's own writers and data; the generators change them."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import magicdec
from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.hardware.catalog import profile_files
from magicdec.costmodel.models.catalog import builtin_configs
from magicdec.costmodel.plans.plan import Plan, load_plan, render_plan

TINY = "../tiny"  # the checkpoint that runs use, seen from the folder of a case
ENGINES = ("vllm", "vllm-vegas", "sglang", "tensorrt-llm", "transformers", "llama.cpp")
ON_8_GPUS: dict[str, Any] = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "num_gpus": 8}
PROMPTS = b"import os\ndef first(items):\nclass Reader:\n"
PROMPT_RECORDS = (
    {"id": "a", "prompt": "import os", "max_new_tokens": 2},
    {"id": "b", "prompt": "def first(items):", "stop": ["\n"], "kv_budget": 8},
    {"id": "c", "prompt": "class Reader:", "stop": "x"},
)
ENVIRONMENT = {
    **{"device": "d", "threads": 1, "processes": 8, "torch": "2.13.0", "cuda": "13.0", "python": "3.12", "system": "s"},
    **{"cpu_kernel": False, "gpu_kernel": True, "instructions": "AVX2", "cores": 64, "date": "2026-01-01T00:00:00Z"},
}


@dataclass(frozen=True)
class Seed:
    """A valid file and a command that reads it.

    Attributes:
        name: Of the file; `{n}` keeps caches by name from answering for another case.
        form: How it is changed: json, yaml, jsonl, csv or text.
        text: Its content.
        command: Reads it as `{file}`, in a folder that has `others` too.
        others: Further files.
        grows: The command appends to the file.
    """

    name: str
    form: str
    text: bytes
    command: str
    others: Mapping[str, bytes] = field(default_factory=dict)
    grows: bool = False


def profiles() -> list[Seed]:
    commands = (
        "predict --model llama-3.1-8b --hardware {file} --num-gpus 8 --batch-size 64 --context-len 32k --json",
        "plan --model gpt-oss-20b --hardware {file} --batch-size 8 --context-len 8k --draft eagle3 --json",
        "regimes --model llama-3.2-1b --hardware {file} --json",
    )
    texts = [profile_files()[name].read_bytes() for name in ("h100-sxm", "a100-sxm-80gb", "l40", "mi300x")]
    return [Seed("profile-{n}.yaml", "yaml", text, command) for text in texts for command in commands]


def configs() -> list[Seed]:
    shape = "--num-gpus 8 --batch-size 8 --context-len 1k --json"
    targets = ("Llama-3.1-8B", "DeepSeek-V3", "gpt-oss-20b", "Gemma-3-27B", "Qwen3-30B-A3B", "Mistral-7B-v0.1")
    as_target = ("predict --model {file} --hardware b200-sxm", "plan --model {file} --hardware b200-sxm --acceptance-rate 0.8")
    as_draft = ("predict --model llama-3.1-70b --draft {file} --hardware h200-sxm",)
    pairs = [*itertools.product(targets, as_target), *itertools.product(("Llama-3.2-1B",), as_draft)]
    return [Seed("config-{n}.json", "json", builtin_configs()[name].read_bytes(), f"{do} {shape}") for name, do in pairs]


@cache
def planned() -> tuple[Plan, ...]:
    """Plans of every shape: with and without a draft, for one workload, several batches and a map."""
    small: dict[str, Any] = {"model": "llama-3.1-8b", "hardware": "a100-sxm-80gb", "batch_size": 8, "context_len": 8000}
    return (
        magicdec.plan(**ON_8_GPUS, batch_size=64, context_len=32000).plan,
        magicdec.plan(**ON_8_GPUS, batch_size=64, context_len=32000, draft=("llama-3.2-1b",), acceptance_rate=0.8).plan,
        magicdec.plan(**ON_8_GPUS, batch_size=64, context_len=32000, weight_dtype="fp8", kv_dtype="fp8", draft=("ngram",)).plan,
        magicdec.plan(**ON_8_GPUS, batch_size=(8, 64), sweep=True).plan,
        magicdec.plan(**small, draft=("eagle3",)).plan,
        magicdec.plan(**small, draft=("self",), draft_kv_dtype="int8").plan,
        magicdec.plan(**small, draft=("ngram",), acceptance_rate=0.0).plan,
    )


def plans() -> list[Seed]:
    found = []
    for plan, engine in itertools.product(planned(), ENGINES):
        with contextlib.suppress(magicdec.InputError):  # not every engine can run every plan
            magicdec.export(plan, engine)
            text, do = render_plan(plan).encode(), f"export {{file}} --to {engine}"
            found += [Seed("plan-{n}.yaml", "yaml", text, f"{do} {output}") for output in ("--json", "-o out/run.sh")]
    return found


def curves() -> list[Seed]:
    """Acceptance curves beside a checkpoint."""
    from magicdec.executor.reference_model import reference_model_dir

    folder = reference_model_dir()
    text = (folder / "acceptance.yaml").read_bytes()
    beside = {"ckpt-{n}/config.json": (folder / "config.json").read_bytes()}
    where = "--model ckpt-{n} --hardware a100-sxm-80gb --batch-size 8 --context-len 4k --json"
    return [
        Seed("ckpt-{n}/acceptance.yaml", "yaml", text, f"{command} {where}", beside)
        for command in ("predict", "predict --kv-budget 200 --gamma 3", "plan", "plan --draft self --kv-policy streaming_llm")
    ]


def measurement(plan: Plan) -> bytes:
    facts = to_document(plan)
    record = {
        "workload": facts["workload"],
        "strategy": facts["strategy"],
        "hardware": plan.hardware.name,
        "target": plan.target.fingerprint,
        "measured_target_step_s": 0.0148,
        "measured_verify_step_s": 0.0159,
        "measured_draft_step_s": 0.0043,
        "measured_gamma_draft_step_s": 0.0129,
        "measured_speculative_tpot_s": 0.0096,
        "measured_speedup": 1.55,
        "acceptance_rate": 0.7,
        "acceptance_by_position": [0.8, 0.7, None],
        "mean_acceptance_length": 3.08,
        "measured_verify_bytes_per_s": 1e12,
        "measured_verify_flop_per_s": 1e14,
        "measured_peak_memory_bytes": 5e10,
        "measured_round_overhead_s": 1e-3,
        "throughput_tokens_per_s": 6600.0,
        "rounds": 100,
        "tokens": 20_000,
        "prefill_s": 10.0,
        "environment": {**ENVIRONMENT, "processes": plan.hardware.tensor_parallel},
        "schema_version": 1,
    }
    return json.dumps(record).encode() + b"\n"


def measurements() -> list[Seed]:
    texts = [measurement(planned()[0]), measurement(planned()[0]) + measurement(planned()[3])]
    return [Seed("measurements-{n}.jsonl", "jsonl", text, "validate {file} --json") for text in texts]


def reports() -> list[Seed]:
    """Plan and measurement, of which one is changed."""
    plan, seen = render_plan(planned()[0]).encode(), measurement(planned()[0])
    few = "--batch-sizes 1,4 --context-lens 1k,4k --ridge l40 --json -o out"
    return [
        Seed("plan-{n}.yaml", "yaml", plan, f"report {{file}} seen-{{n}}.jsonl {few}", {"seen-{n}.jsonl": seen}),
        Seed("seen-{n}.jsonl", "jsonl", seen, f"report plan-{{n}}.yaml {{file}} {few}", {"plan-{n}.yaml": plan}),
    ]


def traces() -> list[Seed]:
    lengths = ((1000, 100), (32000, 256), (500, 2000), (8000, 64))
    table = "prompt_len,output_len,user\n" + "".join(f"{prompt},{output},u\n" for prompt, output in lengths)
    lines = "".join(json.dumps({"prompt_len": prompt, "output_len": output}) + "\n" for prompt, output in lengths)
    command = "plan --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 16 --trace {file} --json"
    return [Seed("trace-{n}.csv", "csv", table.encode(), command), Seed("trace-{n}.jsonl", "jsonl", lines.encode(), command)]


def scenarios() -> list[Seed]:
    table = (
        b"hardware,target,batch_size,context_len,num_gpus,draft_kind,draft_model,kv_policy,kv_budget,gamma,acceptance_rate,note\n"
        b"h100-sxm,llama-3.1-8b,64,32000,8,self,,snapkv,512,3,,first\n"
        b"a100-sxm-80gb,llama-3.1-8b,4,1000,1,model,llama-3.2-1b,,,4,0.8,second\n"
        b"l40,llama-3.2-1b,1,8000,1,none,,,,,,third\n"
    )
    commands = ("predict --scenarios {file} --json", "predict --scenarios {file} -o out/answers.csv", "predict --scenarios {file}")
    return [Seed("scenarios-{n}.csv", "csv", table, command) for command in commands]


@cache
def run_plan() -> bytes:
    """A plan of the tiny checkpoint; made where that is `../tiny`."""
    found = magicdec.plan(TINY, "a100-sxm-80gb", batch_size=4, context_len=64, output_len=2, draft=("self",), acceptance_rate=0.9)
    text = render_plan(found.plan)
    if found.plan.strategy.draft_kind == "none":  # so small a model never pays; the executor is to draft all the same
        text = text.replace("draft_kind: none\n  kv_policy: full\n  kv_budget: null\n  gamma: 0", SELF_DRAFT, 1)
    return text.encode()


SELF_DRAFT = "draft_kind: self\n  kv_policy: snapkv\n  kv_budget: 16\n  gamma: 2"
RUN = f"run plan.yaml --model-dir {TINY} --max-new-tokens 2"


def prompts() -> list[Seed]:
    lines = "".join(json.dumps(record) + "\n" for record in PROMPT_RECORDS).encode()
    beside = {"plan.yaml": run_plan()}
    return [
        Seed("prompts-{n}.jsonl", "jsonl", lines, f"{RUN} --prompts {{file}} -o out/completions.jsonl", beside),
        Seed("prompts-{n}.jsonl", "jsonl", lines, f"{RUN} --prompts {{file}} --json", beside),
        Seed("prompts-{n}.txt", "text", PROMPTS, f"{RUN} --prompts {{file}} --stop x", beside),
    ]


def run_plans() -> list[Seed]:
    beside = {"prompts.txt": PROMPTS}
    command = f"run {{file}} --model-dir {TINY} --max-new-tokens 2 --prompts prompts.txt --json"
    return [Seed("plan-{n}.yaml", "yaml", run_plan(), command, beside)]


@cache
def completed() -> bytes:
    """The completions of two of the three prompts."""
    with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        plan, output = Path(folder) / "plan.yaml", Path(folder) / "completions.jsonl"
        plan.write_bytes(run_plan())
        lines = Path(folder) / "prompts.jsonl"
        lines.write_text("".join(json.dumps(record) + "\n" for record in PROMPT_RECORDS[:2]))
        magicdec.run(load_plan(plan), lines, model_dir=TINY, max_new_tokens=2, output=str(output))
        return output.read_bytes()


def completions() -> list[Seed]:
    lines = "".join(json.dumps(record) + "\n" for record in PROMPT_RECORDS).encode()
    beside = {"plan.yaml": run_plan(), "prompts.jsonl": lines}
    command = f"{RUN} --prompts prompts.jsonl -o {{file}}"
    return [Seed("completions-{n}.jsonl", "jsonl", completed(), command, beside, grows=True)]


def checkpoint_files() -> list[Seed]:
    """The files of a checkpoint directory, one of which is changed."""
    tiny = {f"ckpt-{{n}}/{file.name}": file.read_bytes() for file in Path(TINY).iterdir()}
    command = "run plan.yaml --model-dir ckpt-{n} --max-new-tokens 2 --prompts prompts.txt"
    beside = {"plan.yaml": run_plan(), "prompts.txt": PROMPTS}
    header_end = 8 + int.from_bytes(tiny["ckpt-{n}/model.safetensors"][:8], "little")
    forms = {"config.json": "json", "tokenizer.json": "json", "model.safetensors": "text", "model.safetensors.index.json": "json"}
    names = json.loads(tiny["ckpt-{n}/model.safetensors"][8:header_end])
    weights = {name: "model.safetensors" for name in names if name != "__metadata__"}
    tiny["ckpt-{n}/model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weights}).encode()
    return [
        Seed(name, forms[name.split("/")[1]], text, command, {**beside, **{n: t for n, t in tiny.items() if n != name}})
        for name, text in tiny.items()
    ]


SEEDS: Mapping[str, Callable[[], list[Seed]]] = {
    "profile": cache(profiles),
    "config": cache(configs),
    "plan": cache(plans),
    "curves": cache(curves),
    "measurements": cache(measurements),
    "report": cache(reports),
    "trace": cache(traces),
    "scenarios": cache(scenarios),
    "prompts": cache(prompts),
    "run plan": cache(run_plans),
    "completions": cache(completions),
    "checkpoint": cache(checkpoint_files),
}


def make_tiny_checkpoint(folder: Path) -> None:
    """A random model of 256 tokens of context, so that no limit a case asks for makes a run long; its tokens are bytes."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from magicdec.costmodel.models.hf_config import load_config
    from magicdec.executor.model.transformer import Transformer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = {
        **{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 8, "intermediate_size": 48, "vocab_size": 256, "max_position_embeddings": 256, "dtype": "float32"},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in Transformer(load_config(folder)).named_parameters()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
