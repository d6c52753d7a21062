"""Stage `training`: the reference model, trained for as long as there is time, resumable and packed into one file."""

from __future__ import annotations

import json
import tarfile
import time

import torch
from tokenizers import Tokenizer

from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import train as trainer

from .setting import Setting

TRIAL_STEPS = 40
SHARE = 0.75  # of the time that is left: evaluation and export come after training
LEARNING_RATE = 3e-3


def run(setting: Setting) -> None:
    """Train, evaluate and export."""
    torch.manual_seed(0)
    folder = setting.folder / "training"
    folder.mkdir(exist_ok=True)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        trainer.train_tokenizer().save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = Transformer(parse_hf_config({**trainer.SHAPE, "dtype": "float32"}, where="SHAPE", name="reference")).to(setting.device)
    trainer.initialise(model)
    run = trainer.Run(folder, model, trainer.optimizers(model, LEARNING_RATE))
    run.resume()
    trial = 1 if setting.rehearse else TRIAL_STEPS
    first = run.step
    started_s = time.monotonic()
    trainer.train(run, tokenizer, first + trial, LEARNING_RATE, low_precision=not setting.rehearse)
    step_s = (time.monotonic() - started_s) / trial
    left_s = setting.limit_s - (time.monotonic() - setting.started_s)
    steps = 0 if setting.rehearse else int(SHARE * left_s / step_s)
    trainer.train(run, tokenizer, run.step + max(steps, 0), LEARNING_RATE, low_precision=not setting.rehearse)
    facts: dict[str, object] = {"steps": run.step, "tokens_trained": run.step * trainer.TOKENS_PER_STEP, "training_s": run.seconds}
    if not setting.rehearse:
        facts["held_out_bits_per_byte"] = trainer.evaluate(model.half().float(), tokenizer)
    trainer.export(model, tokenizer, folder / "model", facts)
    with tarfile.open(setting.folder / "reference_model.tar", "w") as archive:
        archive.add(folder / "model", "reference_model")
    setting.write("training", {"step_s": step_s, "facts": json.dumps(facts)})
