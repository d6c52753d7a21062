"""Kinds of layers: what each holds, multiplies, reads, keeps and writes. Nothing here knows a model family."""
