"""The DeBERTa-v2 classifier that Prompt Guard is: tokens in, one row of float32 logits a text out.

Knows no text, no labels' meaning and no tokenizer. Parameter names are Hugging Face's, so a state dict is a checkpoint.
Attention is disentangled (DeBERTa, arXiv 2006.03654, section 3.1): with content projections q, k and the same projections of the relative
position embeddings, Qr and Kr, the score of query i and key j is
    (q_i . k_j  +  q_i . Kr[d(i, j)]  +  k_j . Qr[d(i, j)]) / sqrt(3 H)
where d(i, j) is the bucket of the distance i - j: exact while it is at most half the buckets, logarithmic up to `max_relative_positions`.
Nothing else tells positions apart. Layers are post-norm; the classifier reads the first token through a pooler.
Shapes: B batch, T tokens, S source tokens, D model dim, N heads, H head dim, R relative positions, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from herd.base.errors import ConfigError, ContextOverflowError
from herd.model.encoder_config import EncoderConfig
from herd.model.init import parameter_generator


def distance_bucket(distance: int, config: EncoderConfig) -> int:
    """The bucket of a distance of zero or more tokens; the bucket of -distance is its negative.

    >>> from herd.model.encoder_config import prompt_guard_86m
    >>> [distance_bucket(distance, prompt_guard_86m()) for distance in (0, 128, 129, 256, 511)]
    [0, 128, 129, 192, 255]
    """
    half = config.position_buckets // 2
    if distance <= half:
        return distance
    share = math.log(distance / half) / math.log((config.max_relative_positions - 1) / half)
    return half + math.ceil(share * (half - 1))


def relative_index(length: int, config: EncoderConfig) -> Int[Tensor, "T T"]:
    """Row of the relative position embedding for every query (first axis) and key of a text of `length` tokens."""
    last = config.position_buckets
    buckets = torch.tensor([distance_bucket(distance, config) for distance in range(length)])
    offset = torch.arange(length)[:, None] - torch.arange(length)
    return (buckets[offset.abs()] * offset.sign() + last).clamp(0, 2 * last - 1)


class DisentangledAttention(nn.Module):
    """Content, content-to-position and position-to-content scores in one softmax. Its attribute names are those of Hugging Face files."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.position_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.probability_dropout = config.attention_probs_dropout_prob

    def _heads(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B N T H"]:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        relative_RD: Float[Tensor, "R D"],
        index_TT: Int[Tensor, "T T"],
        hidden_B11S: Bool[Tensor, "B 1 1 T"] | None,
    ) -> Float[Tensor, "B T D"]:
        q_BNTH = self._heads(self.query_proj(x_BTD))
        k_BNTH = self._heads(self.key_proj(x_BTD))
        v_BNTH = self._heads(self.value_proj(x_BTD))
        relative_1RD = self.position_dropout(relative_RD)[None]
        bias_BNTT = gather_positions(q_BNTH, self._heads(self.key_proj(relative_1RD)), index_TT)
        bias_BNTT = bias_BNTT + gather_positions(k_BNTH, self._heads(self.query_proj(relative_1RD)), index_TT.T).transpose(-1, -2)
        scale = 1.0 / math.sqrt(3 * self.head_dim)
        bias_BNTT = bias_BNTT * scale
        if hidden_B11S is not None:
            bias_BNTT = bias_BNTT.masked_fill(hidden_B11S, -torch.inf)
        dropout = self.probability_dropout if self.training else 0.0
        out_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, attn_mask=bias_BNTT, dropout_p=dropout, scale=scale)
        return out_BNTH.transpose(1, 2).flatten(2)


def gather_positions(
    content_BNTH: Float[Tensor, "B N T H"], relative_1NRH: Float[Tensor, "1 N R H"], index_TT: Int[Tensor, "T T"]
) -> Float[Tensor, "B N T T"]:
    """The product of each token's content with the relative position that `index_TT` names for it and every other token."""
    products_BNTR = content_BNTH @ relative_1NRH.transpose(-1, -2)
    return products_BNTR.gather(-1, index_TT.expand(*products_BNTR.shape[:2], -1, -1))


class ResidualNorm(nn.Module):
    """LayerNorm(dense(x) + residual): the end of both halves of a layer."""

    def __init__(self, config: EncoderConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Float[Tensor, "B T F"], residual: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class GeluDense(nn.Module):
    """gelu(dense(dropout(x))), with the exact gelu: the first half of the ffn, and the pooler."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return F.gelu(self.dense(self.dropout(x)))


class EncoderAttention(nn.Module):
    """The attention half of a layer; the name `self` is the checkpoint's."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = DisentangledAttention(config)
        self.output = ResidualNorm(config, config.hidden_size)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], relative_RD: Tensor, index_TT: Tensor, hidden_B11S: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        return self.output(self.self(x_BTD, relative_RD, index_TT, hidden_B11S), x_BTD)


class EncoderLayer(nn.Module):
    """h = norm(Attention(x) + x); out = norm(FFN(h) + h)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = EncoderAttention(config)
        self.intermediate = GeluDense(config.hidden_size, config.intermediate_size)
        self.output = ResidualNorm(config, config.intermediate_size)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], relative_RD: Tensor, index_TT: Tensor, hidden_B11S: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        h_BTD = self.attention(x_BTD, relative_RD, index_TT, hidden_B11S)
        return self.output(self.intermediate(h_BTD), h_BTD)


class EncoderEmbeddings(nn.Module):
    """The normalised word embedding; positions enter in attention alone."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens_BT)))


class EncoderStack(nn.Module):
    """The layers and the relative position embedding, which one LayerNorm normalises for all of them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.rel_embeddings = nn.Embedding(2 * config.position_buckets, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], index_TT: Int[Tensor, "T T"], hidden_B11S: Bool[Tensor, "B 1 1 T"] | None
    ) -> Float[Tensor, "B T D"]:
        relative_RD = self.LayerNorm(self.rel_embeddings.weight)
        for layer in self.layer:
            x_BTD = layer(x_BTD, relative_RD, index_TT, hidden_B11S)
        return x_BTD


class Deberta(nn.Module):
    """Embedding and layers: the part whose names begin with `deberta.` in a checkpoint."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = EncoderEmbeddings(config)
        self.encoder = EncoderStack(config)


class EncoderClassifier(nn.Module):
    """A text classifier over a DeBERTa-v2 encoder. Build it under `torch.device("meta")` for shapes alone.

    A new module is in training mode, where dropout acts: call `.eval()`, as `checkpoint.encoder.load_encoder` does.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.deberta = Deberta(config)
        self.pooler = GeluDense(config.hidden_size, config.hidden_size, config.pooler_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = nn.Dropout(config.cls_dropout)
        self._index: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.classifier.weight.dtype

    def _relative_index(self, length: int) -> Tensor:
        if self._index is None or self._index.device != self.device or len(self._index) < length:
            self._index = relative_index(length, self.config).to(self.device)
        return self._index[:length, :length]

    def forward(self, tokens_BT: Int[Tensor, "B T"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B C"]:
        """Float32 logits of every class. `valid_BT` is False on padding, which must be on the right.

        Raises ContextOverflowError for a text over `max_position_embeddings` tokens, ConfigError for padding on the left: the classifier
        reads the first token.
        """
        length, limit = tokens_BT.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ContextOverflowError(f"a text of {length:,} tokens is over the encoder's {limit:,}", hint="classify it in windows")
        if valid_BT is not None and not bool(valid_BT[:, 0].all()):
            raise ConfigError("the encoder reads the first token, which is padding in at least one row", hint="pad on the right")
        hidden_B11S = None if valid_BT is None else ~valid_BT[:, None, None, :]
        x_BTD = self.deberta.encoder(self.deberta.embeddings(tokens_BT), self._relative_index(length), hidden_B11S)
        return self.classifier(self.dropout(self.pooler(x_BTD[:, 0]))).float()


@torch.no_grad()
def initialise_encoder(
    model: EncoderClassifier, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EncoderClassifier:
    """Allocate `model` (built on meta or not) on `device` in `dtype` and fill it by (seed, name). Returns the model."""
    model.to(dtype=dtype)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            values = torch.empty(parameter.shape, dtype=torch.float32)
            values.normal_(0.0, model.config.initializer_range, generator=parameter_generator(seed, name))
            parameter.copy_(values)
    return model
