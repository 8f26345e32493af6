"""Asking a model: the port that applications speak, the model in this process behind it, and `herd.LLM`."""
