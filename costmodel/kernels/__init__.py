"""Closed-form latency of single GPU kernels: matrix products, attention, all-reduce."""
