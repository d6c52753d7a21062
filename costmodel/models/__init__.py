"""Descriptions of transformer models: dimensions, weight matrices, Hugging Face configs, built-in models."""
