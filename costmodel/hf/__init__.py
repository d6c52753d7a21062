"""Reading of Hugging Face configs: keys, families, layers, quantisation. Knows kinds of layers, not what they cost."""
