"""The plan of serving a model on hardware that need not be here: what fits, how many sequences at once, and how fast at best.

    plan = serve_plan("405b", "h100-80gb", tp=8, weights="fp8", context=131_072)
    plan.fits, plan.max_sequences, plan.decode(1).tokens_per_s, plan.first_token_s(4096)

A token's time is the longer of reading weights and keys and of computing, for each stage, and what tensor parallel ranks exchange, which
does not overlap. What a server loses between steps is not in it: these are bounds by the hardware. What the engine of herd allocates on
this machine to the byte is `engine.memory`'s to say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.config import ModelConfig
from herd.plan.assumptions import Assumptions
from herd.plan.hardware import Device
from herd.plan.serve_time import Served, Speed, decode_speed, first_token_s
from herd.plan.train import resolve
from herd.plan.weights import Format, WeightBytes, layer_range, model_bytes, weight_bytes

CacheDtype = Literal["bf16", "fp32", "fp8", "int8"]
CACHE_DTYPES: tuple[CacheDtype, ...] = ("bf16", "fp32", "fp8", "int8")
_CACHE_BYTES = {"bf16": 2, "fp32": 4, "fp8": 1, "int8": 1}


def as_cache_dtype(text: str) -> CacheDtype:
    """A dtype of keys and values by name, torch's names too. Raises ConfigError for one that is not known."""
    for known in CACHE_DTYPES:
        if {"bfloat16": "bf16", "float32": "fp32"}.get(text, text) == known:
            return known
    raise ConfigError(f"kv dtype is {text!r}", hint="choose " + ", ".join(CACHE_DTYPES))


def cache_bytes_per_token(config: ModelConfig, cache: CacheDtype) -> int:
    """Keys and values of one token in all layers; int8 and fp8 have a float32 scale for each vector, as herd's engine keeps them."""
    scales = 2 * config.num_hidden_layers * config.num_key_value_heads * 4 if cache in ("int8", "fp8") else 0
    return config.kv_bytes_per_token(_CACHE_BYTES[cache]) + scales


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeRank:
    """Bytes on the devices of one stage; `cache_per_sequence` is of one sequence of the whole context."""

    stage: int
    num_layers: int
    weights: int
    scales: int
    activations: int
    scores: int
    reserve: int
    cache_per_sequence: int

    @property
    def fixed(self) -> int:
        """Everything but the cache."""
        return self.weights + self.scales + self.activations + self.scores + self.reserve

    @property
    def total(self) -> int:
        """With one sequence of the whole context."""
        return self.fixed + self.cache_per_sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class ServePlan:
    """A served model, planned. `ranks` has a row for every stage."""

    model: str
    config: ModelConfig
    device: Device
    tp: int
    pp: int
    weights: Format
    cache: CacheDtype
    context: int
    token_budget: int
    assumptions: Assumptions
    whole: WeightBytes
    ranks: tuple[ServeRank, ...]

    @property
    def num_devices(self) -> int:
        """Of one replica."""
        return self.tp * self.pp

    @property
    def fullest(self) -> ServeRank:
        """The stage with the most."""
        return max(self.ranks, key=lambda rank: rank.total)

    @property
    def fits(self) -> bool:
        """Whether one sequence of the whole context does."""
        return self.max_sequences > 0

    @property
    def max_sequences(self) -> int:
        """Sequences of the whole context at once."""
        return self.sequences_of(self.context)

    @property
    def cache_bytes_per_token(self) -> int:
        """Over all devices."""
        return cache_bytes_per_token(self.config, self.cache)

    @property
    def model_bytes_with_one(self) -> int:
        """Weights, scales and one sequence of the whole context: what the devices together must hold besides arenas and reserve."""
        return self.whole.total + self.context * self.cache_bytes_per_token

    def sequences_of(self, length: int) -> int:
        """Sequences of so many tokens that fit at once."""
        free = min((self.device.memory_bytes - rank.fixed) / (rank.cache_per_sequence / self.context * length) for rank in self.ranks)
        return max(0, int(free))

    def require_fit(self) -> ServePlan:
        """The plan itself. Raises DoesNotFitError, with the figures of the fullest device and a remedy, where it does not fit."""
        if self.fits:
            return self
        rank, device = self.fullest, self.device
        whole = f"{self.whole.weights / 1e9:,.1f} GB of weights in {self.weights}"
        cache = f"{rank.cache_per_sequence / 1e9:.1f} GB for {self.context:,} tokens"
        raise DoesNotFitError(
            f"{self.model} ({whole}) needs {rank.total / 1e9:.1f} GB on each of {self.num_devices} x {device.name}, {cache} among it; "
            f"a device has {device.memory_gb:,.4g} GB",
            hint=self._remedy(),
        )

    def _remedy(self) -> str:
        room = self.device.memory_bytes - self.fullest.fixed
        if room > 0:
            tokens = int(room / (self.fullest.cache_per_sequence / self.context))
            return f"a context of {tokens:,} tokens fits; or add GPUs, or a narrower --kv-dtype"
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            split = split_devices(self.config, self.device, count)
            if count > self.num_devices and split is not None:
                bigger = serve_plan(
                    self.config,
                    self.device,
                    tp=split[0],
                    pp=split[1],
                    weights=self.weights,
                    cache=self.cache,
                    context=self.context,
                    assumptions=self.assumptions,
                )
                if bigger.fits:
                    return f"--gpus {count} holds it (TP {split[0]}, PP {split[1]}); or choose a narrower --weights"
        return "choose a narrower --weights, or hardware with more memory"

    def decode(self, sequences: int, *, length: int | None = None) -> Speed:
        """Writing so many sequences at once, `length` tokens behind each (half of the context by default). Raises ConfigError for none."""
        return decode_speed(self.served, sequences, self.context // 2 if length is None else length)

    def first_token_s(self, prompt: int) -> float:
        """Seconds until the first token of a prompt that is alone."""
        return first_token_s(self.served, prompt, self.token_budget)

    @property
    def served(self) -> Served:
        """What the times depend on."""
        return Served(
            config=self.config,
            device=self.device,
            tp=self.tp,
            pp=self.pp,
            weights=self.weights,
            cache_bytes_per_token=self.cache_bytes_per_token,
            assumptions=self.assumptions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON sends it."""
        most = self.max_sequences
        return {
            "model": self.model,
            "num_parameters": self.config.num_parameters,
            "hardware": self.device.to_dict(),
            "tp": self.tp,
            "pp": self.pp,
            "devices": self.num_devices,
            "weights": self.weights,
            "weights_bytes": self.whole.weights,
            "scales_bytes": self.whole.scales,
            "kv_dtype": self.cache,
            "kv_bytes_per_token": self.cache_bytes_per_token,
            "context": self.context,
            "bytes_with_one_sequence": self.model_bytes_with_one,
            "fits": self.fits,
            "max_sequences": most,
            "memory_bytes": [{**asdict(rank), "total": rank.total} for rank in self.ranks],
            "decode": [asdict(self.decode(count)) for count in sorted({1, max(1, most)})],
            "assumptions": self.assumptions.to_dict(),
        }


def split_devices(config: ModelConfig, device: Device, count: int) -> tuple[int, int] | None:
    """Tensor and pipeline parallel for so many devices: as much of the first as node and KV heads allow; None where it comes out uneven."""
    for tp in range(min(count, device.devices_per_node), 0, -1):
        if (
            count % tp == 0
            and config.num_key_value_heads % tp == 0
            and config.intermediate_size % tp == 0
            and count // tp <= config.num_hidden_layers
        ):
            return tp, count // tp
    return None


def _rank(
    config: ModelConfig,
    device: Device,
    kind: Format,
    cache: CacheDtype,
    context: int,
    budget: int,
    assumptions: Assumptions,
    tp: int,
    pp: int,
    stage: int,
) -> ServeRank:
    held, layers = weight_bytes(config, kind, tp=tp, pp=pp, stage=stage), len(layer_range(config, pp, stage))
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    wide = 4 if kind == "fp32" else 2
    activations = budget * (3 * config.hidden_size + (2 * query + 2 * keyvalue + 3 * config.intermediate_size) // tp) * wide
    scores = 256 * -(-config.vocab_size // tp) * 4 if stage == pp - 1 else 0
    return ServeRank(
        stage=stage,
        num_layers=layers,
        weights=held.weights,
        scales=held.scales,
        activations=activations,
        scores=scores,
        reserve=int(assumptions.reserve_gb * 1e9),
        cache_per_sequence=context * cache_bytes_per_token(config, cache) * layers // config.num_hidden_layers // tp,
    )


def serve_plan(
    model: ModelConfig | str,
    device: Device | str,
    *,
    tp: int = 1,
    pp: int = 1,
    weights: Format = "bf16",
    cache: CacheDtype = "bf16",
    context: int | None = None,
    token_budget: int = 2048,
    assumptions: Assumptions | None = None,
    name: str | None = None,
) -> ServePlan:
    """Plan one replica. It is planned whether it fits or not: ask `fits`, or call `require_fit`.

    Args:
        model: a config, or a name as `405b`.
        device: of the catalogue, by name, or one of your own.
        tp: devices that share every layer.
        pp: stages that have the layers behind one another.
        weights: their format.
        cache: dtype of keys and values.
        context: tokens that one sequence may have; the model's by default.
        token_budget: tokens of a step at most.
        assumptions: shares of the nameplate.
        name: of a model that is given as a config.

    Raises:
        ConfigError: a split or a context that the model cannot have.
        NotFoundError: a name that is not known.
    """
    title, config, found, supposed = resolve(model, device, assumptions, name)
    length = config.max_position_embeddings if context is None else context
    if not 1 <= length <= config.max_position_embeddings:
        raise ConfigError(
            f"the context of {length:,} tokens is not within the model's {config.max_position_embeddings:,}",
            hint=f"set a context of 1 to {config.max_position_embeddings}",
        )
    for label, value in (("tp", tp), ("pp", pp), ("token_budget", token_budget)):
        if value < 1:
            raise ConfigError(f"{label} is {value}, it must be at least 1", hint=f"leave {label} at its default")
    if found.num_devices is not None and tp * pp > found.num_devices:
        raise ConfigError(f"{tp * pp:,} devices are more than the {found.num_devices:,} of {found.name}", hint="choose fewer")
    ranks = tuple(_rank(config, found, weights, cache, length, token_budget, supposed, tp, pp, stage) for stage in range(pp))
    return ServePlan(
        model=title,
        config=config,
        device=found,
        tp=tp,
        pp=pp,
        weights=weights,
        cache=cache,
        context=length,
        token_budget=token_budget,
        assumptions=supposed,
        whole=model_bytes(config, weights, tp=tp),
        ranks=ranks,
    )
