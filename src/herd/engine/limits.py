"""What a scheduler may do in one step and at all, and the refusals that follow. No torch.

What can never run is refused before it is queued, with the numbers; so whatever is queued will run, and no step has to refuse anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError, ContextOverflowError, DoesNotFitError, TokenizerError, UsageError
from herd.engine.prefix import MAX_TOKEN_ID


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The bounds.

    Attributes:
        token_budget: tokens of a step at most.
        max_sequences: sequences that hold cache blocks at once, at most.
        max_context: tokens of a prompt and its continuation together, at most.
        chunk_alignment: where a prompt is cut into chunks, they end at multiples of it; at the kernel's split size, a sum over the cache is
            the same sum however a prompt was cut.
        reserve: share of a sequence's new tokens that admission keeps blocks for. 0 admits early, and preempts when that was too early;
            1 never has to preempt, unless a group alone is larger than the cache.
    """

    token_budget: int
    max_sequences: int
    max_context: int
    chunk_alignment: int = 1
    reserve: float = 0.0

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_sequences", "max_context", "chunk_alignment"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"leave {name} at its default")
        if not 0.0 <= self.reserve <= 1.0:
            raise ConfigError(f"reserve is {self.reserve}, it must be 0 to 1", hint="0 preempts when memory runs short, 1 never does")
        # Every running sequence gets its next token in every step, and one prompt at least a chunk: then nothing can stall.
        needed = self.max_sequences - 1 + self.chunk_alignment
        if self.token_budget < needed:
            raise ConfigError(
                f"token_budget is {self.token_budget}, {self.max_sequences} sequences and chunks of {self.chunk_alignment} need {needed}",
                hint=f"set token_budget to {needed} or more, or lower max_sequences or chunk_alignment",
            )

    def check_prompt(self, prompt: tuple[int, ...]) -> None:
        """Raises TokenizerError for what no tokenizer makes."""
        if not prompt:
            raise TokenizerError("the prompt is empty", hint="give at least one token; <|begin_of_text|> begins every text")
        for token_id in (min(prompt), max(prompt)):
            if not 0 <= token_id <= MAX_TOKEN_ID:
                raise TokenizerError(
                    f"the prompt holds the id {token_id}, which no tokenizer has", hint="the ids come from another tokenizer"
                )

    def new_tokens(self, num_prompt: int, max_new_tokens: int) -> int:
        """How many tokens can follow. Raises UsageError where none are asked for, ContextOverflowError where the prompt leaves no room."""
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}, it must be at least 1", hint="ask for one token or more")
        if num_prompt >= self.max_context:
            raise ContextOverflowError(
                f"the prompt has {num_prompt:,} tokens and the context is {self.max_context:,}: no room for an answer",
                hint="shorten the prompt or begin a new conversation; nothing was cut",
            )
        return min(max_new_tokens, self.max_context - num_prompt)


def check_fits(num_prompt: int, num_new: int, *, num_blocks: int, block_size: int) -> None:
    """Raises DoesNotFitError where a sequence needs more blocks than there are. The last new token is never read back, so never cached."""
    needed = -(-(num_prompt + num_new - 1) // block_size)
    if needed > num_blocks:
        room = num_blocks * block_size + 1 - num_prompt
        lower = f"lower max_tokens to {room:,} or less, " if room >= 1 else ""
        raise DoesNotFitError(
            f"{num_prompt:,} prompt tokens and {num_new:,} new ones need {needed:,} cache blocks of {block_size}, there are {num_blocks:,}",
            hint=f"{lower}shorten the prompt, or give the cache more memory",
        )
