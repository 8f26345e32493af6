"""The peers of the training benchmark: one plain loop around the Llama of transformers, of litgpt and of torchtitan, with herd's weights.

Each is built by its own package from the same shape and takes herd's weights by that package's own conversion, so its first loss has to be
herd's. A package that is not installed raises ImportError when its peer is built. torchtitan's trainer asks for a GPU, so its model runs in
the same loop as the others, with its loss, and with torch's attention, since its other backends have no backward on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.kernels.torch_compat import multiplies_bfloat16
from herd.model.config import ModelConfig
from herd.train.config import SourceConfig, StageConfig
from herd.train.optimizer import build_adamw

SHAPES: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    # vocabulary, width, ffn, layers, heads, KV heads, tokens in a row, rows a step
    "8m": (8448, 256, 768, 8, 4, 1, 512, 8),
    "30m": (16640, 384, 1024, 12, 6, 2, 1024, 4),
    "110m": (32000, 768, 2048, 12, 12, 4, 1024, 4),
}
_NARROW = multiplies_bfloat16("cpu")
DTYPE = torch.bfloat16 if _NARROW else torch.float32
"""What all compute in: bf16 autocast over float32 weights, or float32 alone on a processor that does not multiply bf16."""
Step = Callable[[], float]
Weights = dict[str, Tensor]


def make_config(shape: str) -> ModelConfig:
    """The model of a shape."""
    vocab, dim, ffn, layers, heads, kv_heads, length, _ = SHAPES[shape]
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim // heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )


def make_stage(shape: str) -> StageConfig:
    """The step of a shape."""
    *_, length, rows = SHAPES[shape]
    source = SourceConfig(name="random", path="-")
    sizes = {"sequence_length": length, "batch_size": rows, "micro_batch_size": rows}
    return StageConfig(sources=(source,), num_steps=100, lr=3e-4, compute_dtype=str(DTYPE).removeprefix("torch."), **sizes)


def make_batch(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one document each."""
    vocab, *_, length, rows = SHAPES[shape]
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, length + 1)).astype(np.int32)
    counts = np.ones(tokens.shape, dtype=np.bool_)
    counts[:, 0] = False
    return tokens, np.zeros(tokens.shape, dtype=np.int16), counts


def _mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def _plain_step(
    model: Any, logits: Callable[[Tensor], Tensor], shape: str, loss_of: Callable[[Tensor, Tensor], Tensor] = _mean_cross_entropy
) -> Step:
    """The loop that anyone would write."""
    tokens, stage = torch.from_numpy(make_batch(shape)[0]).long(), make_stage(shape)
    optimizer = build_adamw(model, stage)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=_NARROW):
            out = logits(tokens[:, :-1])
        loss = loss_of(out, tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def transformers_step(shape: str, weights: Weights) -> Step:
    """LlamaForCausalLM with SDPA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_config(shape)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
            use_cache=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
    )
    model.load_state_dict(weights, strict=False)
    model.train()
    return _plain_step(model, lambda tokens: model(tokens).logits, shape)


def litgpt_step(shape: str, weights: Weights) -> Step:
    """Litgpt's GPT."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    config = make_config(shape)
    theirs = Config(
        name="shape",
        block_size=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.vocab_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_embd=config.hidden_size,
        n_query_groups=config.num_key_value_heads,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=config.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
        intermediate_size=config.intermediate_size,
        rope_base=int(config.rope_theta),
    )
    model, converted = GPT(theirs), dict[str, Tensor]()
    copy_weights_hf_llama(theirs, {}, converted, dict(weights))
    model.load_state_dict(converted)
    model.lm_head.weight = model.transformer.wte.weight
    return _plain_step(model, model, shape)


def torchtitan_step(shape: str, weights: Weights) -> Step:
    """Torchtitan's Llama3Model, and its cross entropy."""
    from torchtitan.components.loss import cross_entropy_loss
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
    from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
    from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

    config = make_config(shape)
    dim, vocab = config.hidden_size, config.vocab_size

    def norm() -> Any:
        return RMSNorm.Config(normalized_shape=dim, eps=config.rms_norm_eps)

    def block() -> Any:
        return Llama3TransformerBlock.Config(
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=make_gqa_config(
                dim=dim,
                n_heads=config.num_attention_heads,
                n_kv_heads=config.num_key_value_heads,
                wqkv_param_init={},
                wo_param_init={},
                inner_attention=ScaledDotProductAttention.Config(),
                rope=ComplexRoPE.Config(dim=config.head_dim, max_seq_len=config.max_position_embeddings, theta=config.rope_theta),
            ),
            feed_forward=make_ffn_config(dim=dim, hidden_dim=config.intermediate_size, w1_param_init={}, w2w3_param_init={}),
        )

    theirs = Llama3Model.Config(
        dim=dim,
        vocab_size=vocab,
        enable_weight_tying=True,
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=dim),
        norm=norm(),
        lm_head=Linear.Config(in_features=dim, out_features=vocab),
        layers=[block() for _ in range(config.num_hidden_layers)],
    )
    model = theirs.build()
    converted = Llama3StateDictAdapter(theirs, None).from_hf({name: value for name, value in weights.items() if name != "lm_head.weight"})
    model.load_state_dict({**converted, "tok_embeddings.weight": converted["lm_head.weight"]}, strict=False)
    targets = make_batch(shape)[0].shape
    count = targets[0] * (targets[1] - 1)
    return _plain_step(model, model, shape, lambda logits, labels: cross_entropy_loss(logits, labels) / count)


PEERS: dict[str, Callable[[str, Weights], Step]] = {
    "transformers": transformers_step,
    "litgpt": litgpt_step,
    "torchtitan": torchtitan_step,
}
