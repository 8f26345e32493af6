"""The server: OpenAI's routes over an engine in a process of its own. The web framework is imported in this package alone."""
