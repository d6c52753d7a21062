"""Speculative decoding on a deployment: drafts, acceptance, memory, step times and speedup."""
