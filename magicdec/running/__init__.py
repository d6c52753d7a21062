"""Running a strategy: checkpoints loaded, requests executed. Imports torch, and sees no prediction."""
