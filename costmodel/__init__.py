"""Cost model and planner of speculative decoding: predictions without running a model."""
