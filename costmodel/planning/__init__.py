"""Choosing a strategy: ranked search, policy tables over batch size and context, regimes."""
