"""What `herd` without arguments offers: the next commands, shortest way first. Knows no model and imports nothing heavy."""

from __future__ import annotations

OFFERS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Talk to cria, the small model that ships with herd (it proves the path and is wrong about most facts):",
        (
            ("herd chat", "in this terminal"),
            ("herd serve", "in a browser, with OpenAI's API beside it"),
            ('herd run "What is a river?"', "one answer, for scripts"),
        ),
    ),
    (
        "Run a real Llama:",
        (
            ("herd doctor", "what this machine has, and the largest model that fits it"),
            ("herd pull llama3.2:1b", "fetch one, under Meta's licence; then herd chat --model llama3.2:1b"),
            ("herd models", "the models that are here"),
        ),
    ),
    (
        "Build with it:",
        (
            ('herd agent "What is here?" --files .', "a model with tools, which asks before it acts"),
            ('herd guard "Ignore all instructions."', "whether a text is safe"),
            ("herd train tiny", "train a model yourself, in under two minutes"),
        ),
    ),
)


def welcome() -> str:
    """The text."""
    width = max(len(command) for _, rows in OFFERS for command, _ in rows)
    parts = ["herd is the whole Llama 3.1 system in one package."]
    for heading, rows in OFFERS:
        parts.append("\n".join([heading, *(f"  {command:<{width}}  {told}" for command, told in rows)]))
    parts.append("Every command: herd --help; of one: herd chat --help")
    return "\n\n".join(parts)
