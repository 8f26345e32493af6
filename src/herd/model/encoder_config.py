"""What a DeBERTa-v2 classifier is: its numbers, validated, and the counts that follow. No torch here, as in `model.config`.

Field names are those of Hugging Face's `config.json`. Only the form that Prompt Guard uses is described: relative positions in log buckets,
content-to-position and position-to-content terms that share their projections, no absolute positions, no token types, no convolution.
DeBERTa (arXiv 2006.03654), section 3.1; bucketed positions and shared projections are of version 2 and DeBERTaV3 (arXiv 2111.09543).
Letters: V vocabulary, D model dim, L layers, N heads, F ffn dim, R relative positions (two a bucket: one for each direction).
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "max_relative_positions",
    "position_buckets",
)
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """A DeBERTa-v2 encoder with a pooler on the first token and a linear classifier.

    `id2label` names the classes by index. `max_position_embeddings` is the longest input in tokens; `max_relative_positions` the distance
    that the buckets reach. `cls_dropout` acts before the classifier. Raises ConfigError where the numbers contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    max_relative_positions: int = 512
    position_buckets: int = 256
    layer_norm_eps: float = 1e-7
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pooler_dropout: float = 0.0
    cls_dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}, it must be a positive integer", hint="check the encoder's config.json")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value < 1.0:
                raise ConfigError(f"{name} is {value!r}, it must be a number in [0, 1)", hint="Prompt Guard uses 0.1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} cannot be split evenly over {self.num_attention_heads} heads",
                hint="hidden_size must be a multiple of num_attention_heads",
            )
        self._check_buckets()
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or not value > 0.0:
                raise ConfigError(f"{name} is {value!r}, it must be a positive number", hint="DeBERTa uses 1e-7 and 0.02")
        self._check_ids()

    def _check_buckets(self) -> None:
        if self.position_buckets < 4 or self.position_buckets % 2:
            raise ConfigError(
                f"position_buckets is {self.position_buckets}, it must be an even number of at least 4", hint="DeBERTa-v3 uses 256"
            )
        if self.max_relative_positions <= self.position_buckets // 2 + 1:
            raise ConfigError(
                f"max_relative_positions is {self.max_relative_positions}, with {self.position_buckets} buckets it must be over "
                f"{self.position_buckets // 2 + 1}",
                hint="distances up to half the buckets are exact, those beyond share the other half",
            )

    def _check_ids(self) -> None:
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id is {self.pad_token_id!r}, the vocabulary has {self.vocab_size:,} ids", hint="DeBERTa uses 0")
        if not self.id2label or len(set(self.id2label)) != len(self.id2label):
            raise ConfigError(f"id2label is {self.id2label!r}, it must hold distinct names", hint="give one name for each class")

    @property
    def num_labels(self) -> int:
        """Classes of the classifier."""
        return len(self.id2label)

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters_embedding(self) -> int:
        """Parameters of the word embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters_layer(self) -> int:
        """Parameters of one layer: four square matrices, two ffn matrices, their biases, two norms."""
        dim, ffn = self.hidden_size, self.intermediate_size
        return 4 * (dim * dim + dim) + (2 * dim * ffn + ffn + dim) + 4 * dim

    @property
    def num_parameters(self) -> int:
        """Every parameter, exactly."""
        dim = self.hidden_size
        positions = 2 * self.position_buckets * dim
        norms = 4 * dim
        head = dim * dim + dim + self.num_labels * (dim + 1)
        return self.num_parameters_embedding + positions + norms + self.num_hidden_layers * self.num_parameters_layer + head

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name (as in Hugging Face files and in `EncoderClassifier.state_dict()`) and shape, in file order."""
        dim = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"deberta.embeddings.word_embeddings.weight": (self.vocab_size, dim)}
        shapes |= _affine("deberta.embeddings.LayerNorm", (dim,))
        for layer in range(self.num_hidden_layers):
            shapes |= self._layer_shapes(f"deberta.encoder.layer.{layer}.")
        shapes["deberta.encoder.rel_embeddings.weight"] = (2 * self.position_buckets, dim)
        shapes |= _affine("deberta.encoder.LayerNorm", (dim,))
        return shapes | _affine("pooler.dense", (dim, dim)) | _affine("classifier", (self.num_labels, dim))

    def _layer_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        dim, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {}
        for name in ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"):
            shapes |= _affine(f"{prefix}attention.{name}", (dim, dim))
        shapes |= _affine(prefix + "attention.output.LayerNorm", (dim,))
        shapes |= _affine(prefix + "intermediate.dense", (ffn, dim))
        shapes |= _affine(prefix + "output.dense", (dim, ffn))
        return shapes | _affine(prefix + "output.LayerNorm", (dim,))


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def prompt_guard_86m() -> EncoderConfig:
    """Prompt-Guard-86M: mDeBERTa-v3-base with three classes; 86,043,651 parameters besides its embedding.

    >>> prompt_guard_86m().num_parameters
    278811651
    """
    return EncoderConfig(
        vocab_size=251000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        id2label=("BENIGN", "INJECTION", "JAILBREAK"),
    )
