"""Which extra brings a library that is missing."""

from __future__ import annotations

LIBRARIES = {
    "run": ("torch", "safetensors", "tokenizers", "tqdm"),
    "plot": ("matplotlib", "pandas"),
    "tables": ("pyarrow",),
    "hub": ("huggingface_hub",),
}


def missing_extra(error: ImportError) -> str | None:
    """One sentence on what to install; None if no extra brings the missing library."""
    library = (error.name or "").split(".")[0]
    for extra, libraries in LIBRARIES.items():
        if library in libraries:
            return f"this needs {library}, which is not installed: pip install 'magicdec[{extra}]'"
    return None
