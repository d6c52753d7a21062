"""Results of other tools' benchmarks, logs and metrics, read as measurements."""
