"""What a Llama model is: eleven numbers and a rotary scaling, validated, and the counts that follow from them.

Field names are those of Hugging Face's `config.json`, which is also herd's layout on disk. No torch here: every count is exact integer
arithmetic, so sizes of the 405B are known without allocating a byte. Llama 3 report (arXiv 2407.21783), section 3.2 and table 3.
Letters: V vocabulary, D model dim, L layers, N query heads, K KV heads, H head dim, F ffn dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from herd.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`).

    Wavelengths below original/high_freq_factor stay, those above original/low_freq_factor are divided by `factor`, between them the two are
    blended. It applies at every position, short prompts too. Meta's released code uses factor 8 for every model;
    Hugging Face's 3.2 configs carry 32.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if not self.factor >= 1.0:
            raise ConfigError(f"rope scaling factor is {self.factor}, it must be at least 1", hint="Llama 3.1 uses 8, Llama 3.2 uses 32")
        if not 0.0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope scaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} and {self.high_freq_factor}",
                hint="Llama 3.1 uses 1 and 4",
            )
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                f"original_max_position_embeddings is {self.original_max_position_embeddings}, it must be positive",
                hint="Llama 3.1 was extended from 8192",
            )


def ffn_dim(dim: int, multiplier: float, multiple_of: int) -> int:
    """Meta's rule for the SwiGLU width: 2/3 of 4*dim, times `multiplier`, rounded up to `multiple_of`.

    >>> ffn_dim(16384, 1.2, 4096)
    53248
    """
    hidden = int(multiplier * int(2 * (4 * dim) / 3))
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A dense decoder-only Llama: pre-norm, RMSNorm, SwiGLU, grouped-query attention, rotary positions, no biases.

    Raises ConfigError where the numbers contradict each other. `max_position_embeddings` is the context in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}, it must be a positive integer", hint="check config.json or params.json")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} KV heads evenly",
                hint="num_attention_heads must be a multiple of num_key_value_heads",
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, rotary positions need an even number", hint="Llama uses 64 or 128")
        if not self.rope_theta > 1.0:
            raise ConfigError(f"rope_theta is {self.rope_theta}, it must be over 1", hint="Llama 3 uses 500000")
        if not self.rms_norm_eps > 0.0:
            raise ConfigError(f"rms_norm_eps is {self.rms_norm_eps}, it must be positive", hint="Llama 3 uses 1e-5")

    def with_context(self, num_tokens: int) -> ModelConfig:
        """The same model with another context limit."""
        return replace(self, max_position_embeddings=num_tokens)

    @property
    def num_parameters_attention(self) -> int:
        """Parameters of one layer's q, k, v and o matrices."""
        return 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)

    @property
    def num_parameters_ffn(self) -> int:
        """Parameters of one layer's gate, up and down matrices."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def num_parameters_layer(self) -> int:
        """Parameters of one block, its two norms included."""
        return self.num_parameters_attention + self.num_parameters_ffn + 2 * self.hidden_size

    @property
    def num_parameters_embedding(self) -> int:
        """Parameters of the embedding and, when untied, the output matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def num_parameters(self) -> int:
        """Every parameter, exactly; a tied matrix counts once."""
        return self.num_hidden_layers * self.num_parameters_layer + self.hidden_size + self.num_parameters_embedding

    @property
    def num_parameters_without_embedding(self) -> int:
        """Parameters of the blocks and the final norm."""
        return self.num_parameters - self.num_parameters_embedding

    def forward_flops_per_token(self, context: int) -> int:
        """FLOPs of one token's forward pass with `context` tokens visible: 2 per matrix weight, 4*L*N*H per visible token."""
        matrices = self.num_hidden_layers * (self.num_parameters_attention + self.num_parameters_ffn)
        head = self.vocab_size * self.hidden_size
        attention = 4 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return 2 * (matrices + head) + attention

    def training_flops_per_token(self, sequence: int) -> int:
        """FLOPs of one token's forward and backward in causal sequences of `sequence` tokens (half of them visible on average)."""
        matrices = self.num_hidden_layers * (self.num_parameters_attention + self.num_parameters_ffn)
        head = self.vocab_size * self.hidden_size
        return 6 * (matrices + head) + 6 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * sequence

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name (as in Hugging Face files and in `Transformer.state_dict()`) and shape, in file order."""
        query, keyvalue = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        dim, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, dim)}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (dim,),
                prefix + "self_attn.q_proj.weight": (query, dim),
                prefix + "self_attn.k_proj.weight": (keyvalue, dim),
                prefix + "self_attn.v_proj.weight": (keyvalue, dim),
                prefix + "self_attn.o_proj.weight": (dim, query),
                prefix + "post_attention_layernorm.weight": (dim,),
                prefix + "mlp.gate_proj.weight": (ffn, dim),
                prefix + "mlp.up_proj.weight": (ffn, dim),
                prefix + "mlp.down_proj.weight": (dim, ffn),
            }
        shapes["model.norm.weight"] = (dim,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, dim)
        return shapes
