"""What adapters a model gets. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError, did_you_mean

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block, by the last part of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Adapters of rank `rank` on the layers `targets` of every block; rank 0 is none: the whole model is trained.

    A layer's output is x W^T + scale * dropout(x) A^T B^T, with scale alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski,
    arXiv 2312.03732). `dora` splits the adapted matrix into the length of each row, which is trained, and its direction (Liu et al., arXiv
    2402.09353). `nf4` keeps the frozen matrices in 4 bits (QLoRA: Dettmers et al., arXiv 2305.14314).
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    nf4: bool = False
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank is {self.rank}, it must be 0 or more", hint="8 to 64 are usual; 0 trains the whole model")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha is {self.alpha}, it must be positive", hint="once or twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}, it must be 0 or more and below 1", hint="0 or 0.05 are usual")
        if not self.targets:
            raise ConfigError("lora.targets is empty", hint="name layers: " + ", ".join(TARGETS))
        for name in self.targets:
            if name not in TARGETS:
                hint = did_you_mean(name, TARGETS, otherwise="layers: " + ", ".join(TARGETS))
                raise ConfigError(f"lora.targets names {name!r}, which no block has", hint=hint)
        if not self.rank and (self.dora or self.nf4):
            raise ConfigError(f"lora.{'dora' if self.dora else 'nf4'} needs adapters, and lora.rank is 0", hint="set lora.rank=16")

    @property
    def scale(self) -> float:
        """What the product of the two small matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
