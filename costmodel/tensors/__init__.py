"""Headers of weight files: names, types, shapes and sizes of tensors, without the weights."""
