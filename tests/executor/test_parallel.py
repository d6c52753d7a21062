"""Tensor parallelism: several processes emit what one process emits, for every draft, greedy and sampled."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_matrix import CASES, KV_HEADS, run_matrix, strategies
from tiny_models import TINY, perturbed, save_checkpoint, tiny_model, weights_of

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.tensor_parallel import SINGLE_PROCESS, Ranks
from magicdec.executor.model.transformer import Transformer

ROOT = Path(__file__).parents[2]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "executor")])}


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launcher, *command], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def start_rank(rank: int, port: int, *command: str) -> subprocess.Popen[str]:
    """Start one of two processes, as torchrun would, which takes seconds to load."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen([sys.executable, *command], env={**ENVIRONMENT, **told}, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process emitted, and each of two."""
    folder = tmp_path_factory.mktemp("shared")
    for checkpoint, kv_heads in KV_HEADS.items():
        target = tiny_model(seed=4, num_kv_heads=kv_heads)
        save_checkpoint(folder / checkpoint / "target", target)
        save_checkpoint(folder / checkpoint / "draft", perturbed(target, 0.06))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(ROOT / "tests" / "executor" / "parallel_matrix.py")
    pair = [start_rank(rank, port, script, str(folder)) for rank in (0, 1)]
    # Through JSON like the others, so that all tuples are lists.
    single = json.loads(json.dumps(run_matrix(folder, SINGLE_PROCESS)))
    for process in pair:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]
    return [single, *(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))]


@pytest.mark.slow
def test_no_gloo_thread_outlives_the_process_group_because_it_could_abort_the_process_at_exit(
    emitted: list[dict[str, Any]],
) -> None:
    for found in emitted[1:]:
        assert found["threads"]
        assert not [name for name in found["threads"] if "gloo" in name]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "strategy"), [(case, strategy) for case in CASES for strategy in strategies(*case)], ids=str)
def test_two_processes_emit_the_tokens_of_one(emitted: list[dict[str, Any]], case: tuple[str, str], strategy: Strategy) -> None:
    single, first, second = (found[f"{', '.join(case)}, {strategy}"] for found in emitted)
    assert first == second, "the processes do not agree"
    assert first[0] == single[0]
    assert all(len(output) == 9 for output in single[0])


@pytest.mark.slow
def test_every_kind_of_draft_was_accepted_and_rejected(emitted: list[dict[str, Any]]) -> None:
    for strategy in strategies()[1:]:
        tried = [emitted[1][f"{', '.join(case)}, {strategy}"][1:] for case in CASES if strategy in strategies(*case)]
        drafted, accepted = map(sum, zip(*tried, strict=True))
        assert drafted > accepted > 0, strategy


@pytest.mark.slow
def test_each_of_two_processes_holds_half_of_the_heads_and_at_least_one_kv_head(emitted: list[dict[str, Any]]) -> None:
    for found in emitted[1:]:
        for checkpoint in KV_HEADS:
            held = found[checkpoint]
            assert (held["num_heads"], held["num_kv_heads"], held["d_ff"]) == (2, 1, 24)
            assert (held["d_model"], held["vocab_size"]) == (TINY.d_model, TINY.vocab_size)


# Sharding.


@pytest.mark.parametrize(("size", "kv_heads"), [(2, 4), (2, 2), (4, 4), (4, 2), (4, 1)])
def test_the_shards_of_all_processes_make_up_each_parameter(size: int, kv_heads: int, tmp_path: Path) -> None:
    whole = tiny_model(num_kv_heads=kv_heads)
    save_checkpoint(tmp_path, whole)
    shared = [weights_of(load_model(tmp_path, ranks=Ranks(rank, size))) for rank in range(size)]
    for name, parameter in weights_of(whole).items():
        parts = [found[name] for found in shared]
        (dimension,) = [d for d in range(parameter.ndim) if parts[0].shape[d] != parameter.shape[d]] or [None]
        if dimension is None:
            assert all(torch.equal(part, parameter) for part in parts), name
        else:
            copies = size * parts[0].shape[dimension] // parameter.shape[dimension]
            assert torch.equal(torch.cat(parts[::copies], dimension), parameter), name
            assert all(torch.equal(parts[rank], parts[rank // copies * copies]) for rank in range(size)), name
    sharded = {name.split(".")[-2] for name in shared[0] if shared[0][name].shape != weights_of(whole)[name].shape}
    kv = {"k_proj", "v_proj"} if kv_heads > 1 else set()
    assert sharded == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} | kv


def test_a_shard_knows_the_configuration_of_the_whole_model() -> None:
    model = Transformer(TINY, Ranks(1, 2))
    assert model.whole == TINY
    assert model.config.num_heads == TINY.num_heads // 2
    assert Transformer(TINY).whole == Transformer(TINY).config == TINY


def test_heads_and_widths_that_do_not_divide_are_all_named() -> None:
    with pytest.raises(InputError) as caught:
        Ranks(0, 3).shard(TINY)
    assert [problem.key for problem in caught.value.problems] == ["num_attention_heads", "num_key_value_heads"]
    assert all("3 processes" in problem.expected for problem in caught.value.problems)
    with pytest.raises(InputError, match="intermediate_size"):
        Ranks(0, 2).shard(tiny_model(d_ff=47).config)


# The command.


@pytest.mark.slow
def test_the_run_command_writes_the_same_completions_once_and_prints_once(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from magicdec.cli.group import main

    plan, prompts = tmp_path / "plan.yaml", tmp_path / "prompts.txt"
    made = "plan --model reference --hardware a100-sxm-80gb --batch-size 2 --context-len 512 --output-len 8".split()
    assert CliRunner().invoke(main, [*made, "--kv-budget", "64", "-o", str(plan)]).exit_code == 0
    prompts.write_text("import os\ndef first(items):\nclass Reader:\n")
    command = ["run", str(plan), "--prompts", str(prompts), "--json", "-o"]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert CliRunner().invoke(main, [*command, str(one)]).exit_code == 0
    done = one.read_text().splitlines()
    two.write_text(done[0] + "\n")  # an interrupted run: rank 0 knows what is done, and the others must agree
    result = torchrun("-m", "magicdec", *command, str(two), "--measurements", str(tmp_path / "measured.jsonl"))
    assert result.returncode == 0, result.stderr[-4000:]
    assert sorted(two.read_text().splitlines()) == sorted(done)
    document = json.loads(result.stdout)
    assert document["environment"]["processes"] == 2
    assert len((tmp_path / "measured.jsonl").read_text().splitlines()) == 1
    assert document["prompts_skipped"] == 1


def test_a_model_that_cannot_be_sharded_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(num_heads=3, num_kv_heads=3))
    with pytest.raises(InputError, match="num_attention_heads"):
        load_model(tmp_path, ranks=Ranks(0, 2))
