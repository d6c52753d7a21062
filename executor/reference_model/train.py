"""Train the reference model on the text of this Python installation. To resume, run the same command again.

The learning rate warms up, stays constant, and decays linearly over the last quarter. In that quarter, half of the tokens are in
windows of full length.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.models.transformer import TransformerConfig

from ..model.transformer import Transformer
from . import corpus, reference_model_dir

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 2048
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 704,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 10240,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TOKENS_PER_STEP = 10240
WARMUP_STEPS = 60
DECAY_FRACTION = 0.25


@dataclass(frozen=True)
class Mix:
    """How often a training step uses windows of each length.

    Attributes:
        probabilities: Probability by window length [tokens]. [0-1]
    """

    probabilities: dict[int, float]

    def draw(self, rng: random.Random) -> int:
        """Draw the window length of one step. [tokens]"""
        return rng.choices(list(self.probabilities), list(self.probabilities.values()))[0]


STABLE_MIX = Mix({1024: 0.88, 10240: 0.12})
DECAY_MIX = Mix({2048: 0.5, 10240: 0.5})


def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE tokenizer on the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.training_stream(epoch=0), trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Iterator[str]) -> Tensor:
    """Token ids of all texts in a row, each followed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([token for text in encoded for token in (*text.ids, end)])


def epochs(tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Endless token streams, one per epoch."""
    for epoch in count():
        yield token_stream(tokenizer, corpus.training_stream(epoch))


def learning_rate_factor(step: int, steps: int) -> float:
    """Factor on the learning rate at a step: warm-up, constant, linear decay. [0-1]"""
    return min((step + 1) / WARMUP_STEPS, 1.0, (steps - step) / (DECAY_FRACTION * steps))


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.97)),
    ]


def initialise(model: Transformer) -> None:
    """Initialise weights: small and normal, but zero for the projections that write to the residual stream."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            nn.init.normal_(parameter, std=std)


def loss_per_token(model: Transformer, tokens_BT: Tensor, low_precision: bool) -> Tensor:
    """Cross entropy of each token but the first, of shape [B, T-1]. [nats]"""
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    with torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=low_precision):
        positions_T = torch.arange(inputs_BT.shape[1], device=tokens_BT.device)
        logits_BTV = model.logits(model(inputs_BT, positions_T[None]))
    return F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")


@torch.no_grad()
def evaluate(model: Transformer, tokenizer: Tokenizer, windows: int = 12) -> dict[str, float]:
    """Bits per byte on held-out text: over all positions, near position 8192 and near position 1024. [bits/byte]

    The last two use the same tokens at both positions, because texts differ more than positions do.
    """
    tokens_S = token_stream(tokenizer, (document.text for document in corpus.held_out_documents()))
    cuts = {0: {"all": 0, "near_8192": 7680}, 7168: {"near_1024": 512}}  # by first token of the window: first position that counts
    bits, num_bytes = defaultdict[str, float](float), defaultdict[str, int](int)
    for start in torch.linspace(0, len(tokens_S) - 8706, windows).long().tolist():
        window_S = tokens_S[start : start + 8705]
        for skipped, firsts in cuts.items():
            part_BT = window_S[None, skipped:].to(model.device)
            loss_T = loss_per_token(model, part_BT, low_precision=False)[0]
            for name, first in firsts.items():
                bits[name] += loss_T[first:].sum().item() / math.log(2)
                num_bytes[name] += len(tokenizer.decode(part_BT[0, first + 1 :].tolist()).encode())
    return {name: round(bits[name] / num_bytes[name], 4) for name in bits}


@dataclass
class Run:
    """A training run. `state.safetensors` in its folder holds weights, optimizer state and, as metadata, step and time.

    Attributes:
        folder: Folder of the run.
        model: The model in training.
        optimizers: Its optimizers.
        step: Steps done.
        seconds: Training time so far. [s]
    """

    folder: Path
    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def save(self) -> None:
        """Write the state atomically."""
        tensors = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{number}/{index}/{key}": value for key, value in state.items()}
        partial = self.folder / "state.partial"
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"step": str(self.step), "seconds": str(self.seconds)})
        os.replace(partial, self.folder / "state.safetensors")

    def resume(self) -> None:
        """Load the state of an earlier run, if there is one."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
        for number, optimizer in enumerate(self.optimizers):
            saved: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer/{number}/"):
                    _, _, index, field = key.split("/")
                    saved.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])


def train(run: Run, tokenizer: Tokenizer, steps: int, lr: float, low_precision: bool) -> None:
    """Train up to a number of steps, and save every two minutes.

    Args:
        run: The run to continue.
        tokenizer: The model's tokenizer.
        steps: Optimizer steps of `TOKENS_PER_STEP` tokens, those already done included.
        lr: Peak learning rate.
        low_precision: Compute matrix products in bfloat16.
    """
    streams = epochs(tokenizer)
    stream_S = next(streams)
    rng = random.Random(f"windows/{run.step}")
    used, saved_at, started, smooth = 0, time.monotonic(), time.monotonic(), 0.0
    while run.step < steps:
        if used > len(stream_S):
            stream_S, used = next(streams), 0
        mix = DECAY_MIX if run.step >= (1 - DECAY_FRACTION) * steps else STABLE_MIX
        length = mix.draw(rng)
        starts = [rng.randrange(len(stream_S) - length - 1) for _ in range(TOKENS_PER_STEP // length)]
        batch_BT = torch.stack([stream_S[s : s + length + 1] for s in starts]).to(run.model.device)
        loss = loss_per_token(run.model, batch_BT, low_precision).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate_factor(run.step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        used += TOKENS_PER_STEP
        smooth = loss.item() if not smooth else 0.95 * smooth + 0.05 * loss.item()
        if run.step % 10 == 0:
            per_s = (TOKENS_PER_STEP * 10) / (time.monotonic() - started)
            run.seconds += time.monotonic() - started
            started = time.monotonic()
            click.echo(f"step {run.step}/{steps}  loss {smooth:.3f} nats/token  {per_s:.0f} tokens/s", err=True)
        if time.monotonic() - saved_at > 120 or run.step == steps:
            run.save()
            saved_at = time.monotonic()


def export(model: Transformer, tokenizer: Tokenizer, folder: Path, facts: dict[str, object]) -> None:
    """Write the checkpoint directory in float16, with `facts` in training.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.float16).contiguous() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({**SHAPE, "dtype": "float16"}, indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@click.command(help=__doc__)
@click.option("--work-dir", type=click.Path(path_type=Path), default=Path("build/reference_model"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=reference_model_dir(), help="Checkpoint directory.")
@click.option("--steps", default=1740, show_default=True, help=f"Optimizer steps of {TOKENS_PER_STEP} tokens.")
@click.option("--learning-rate", default=3e-3, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--bfloat16/--float32", "low_precision", default=True, help="Type of matrix products.", show_default=True)
def main(work_dir: Path, output: Path, steps: int, learning_rate: float, device: str, low_precision: bool) -> None:
    """Train, evaluate and export; `click` takes its help from the module docstring."""
    torch.manual_seed(0)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer_file = work_dir / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer().save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    config: TransformerConfig = parse_hf_config({**SHAPE, "dtype": "float32"}, where="SHAPE", name="reference")
    model = Transformer(config).to(device)
    initialise(model)
    run = Run(work_dir, model, optimizers(model, learning_rate))
    run.resume()
    train(run, tokenizer, steps, learning_rate, low_precision)
    facts = {
        "params": config.params,
        "tokens_trained": run.step * TOKENS_PER_STEP,
        "held_out_bits_per_byte": evaluate(model.half().float(), tokenizer),
        "training_s": round(run.seconds),
    }
    export(model, tokenizer, output, facts)
    click.echo(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
