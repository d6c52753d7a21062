"""The tokenizer of a checkpoint: text to token ids and back."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from magicdec.costmodel.base.errors import bad


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load `tokenizer.json` of a checkpoint directory.

    Raises:
        InputError: The file is missing or unreadable.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise bad(file, "", "the checkpoint's tokenizer.json", "nothing")
    try:
        return Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and a Rust panic is a BaseException
        raise bad(file, "", "a readable tokenizer.json", error) from None
