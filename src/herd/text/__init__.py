"""Text, tokens and messages: the tokenizer, BPE training, the Llama 3.1 prompt format, tool calls. No torch, no model."""
