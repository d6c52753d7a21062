"""Serving engines as profiles of their own: what each adds to the kernels of a machine."""
