"""Who holds what: `tp` ranks share every block of a stage, `pp` stages have the blocks behind one another. No torch.

Rank r is part r % tp of stage r // tp. A part has its share of the heads and of the ffn, so that its products with o and down are parts of
sums; the rows of embedding and head are shared out too. The first stage has the embedding, the last the head, and layers that do not come
out even go to the first stages. Shoeybi et al., "Megatron-LM" (arXiv 1909.08053), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig

_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def span(total: int, parts: int, index: int) -> range:
    """The index-th of `parts` runs of 0 .. total-1, as even as can be, the longer ones first.

    >>> span(10, 4, 1)
    range(3, 6)
    """
    size, longer = divmod(total, parts)
    first = index * size + min(index, longer)
    return range(first, first + size + (index < longer))


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How many parts and stages. Raises ConfigError below one."""

    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"leave {name} at 1 not to split")

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.tp * self.pp

    def stage(self, rank: int) -> int:
        """The stage that a rank is part of."""
        return rank // self.tp

    def part(self, rank: int) -> int:
        """Which part of its stage a rank is."""
        return rank % self.tp

    def is_first(self, rank: int) -> bool:
        """Whether a rank has embeddings."""
        return self.stage(rank) == 0

    def is_last(self, rank: int) -> bool:
        """Whether a rank has rows of the head."""
        return self.stage(rank) == self.pp - 1

    @property
    def last_ranks(self) -> range:
        """The ranks of the last stage."""
        return range(self.size - self.tp, self.size)

    def layers(self, config: ModelConfig, rank: int) -> range:
        """The blocks of a rank."""
        return span(config.num_hidden_layers, self.pp, self.stage(rank))

    def rows(self, vocab_size: int, rank: int) -> range:
        """The rows of embedding and head that a rank has."""
        return span(vocab_size, self.tp, self.part(rank))

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError, with the numbers, for a model that cannot be split so."""
        for name in _SHARED:
            count = getattr(config, name)
            if count % self.tp:
                fits = [str(tp) for tp in range(1, count + 1) if all(getattr(config, one) % tp == 0 for one in _SHARED)]
                raise ConfigError(f"tp {self.tp} does not divide {name} {count}", hint="this model can have tp " + " or ".join(fits))
        if self.pp > config.num_hidden_layers:
            raise ConfigError(
                f"pp {self.pp} is over the model's {config.num_hidden_layers} layers", hint="a stage needs a layer: set a lower pp"
            )

    def share(self, config: ModelConfig, rank: int) -> ModelConfig:
        """The model that a rank's blocks are of: its layers, heads and ffn, the residual stream whole."""
        shares = {name: getattr(config, name) // self.tp for name in _SHARED}
        return replace(config, num_hidden_layers=len(self.layers(config, rank)), **shares)
