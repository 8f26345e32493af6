"""Agents: the loop between a model and its tools, with guards, limits, a person's yes where one is due, and sessions that last.

Speaks to a model through `inference.port` alone, so that a local model and a server serve alike. Knows no route and no terminal, no torch.
"""
