"""Prompt Guard's checkpoint: a Hugging Face folder of one DeBERTa-v2 classifier (config.json and one model.safetensors).

Knows only the options that `model.encoder_config` describes and refuses the others by name: nothing that the file asks for is left out in
silence. Config and header are compared before a tensor is read; tensors are read one at a time. Pickled weights are never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.problems import compare_shapes, raise_first
from herd.checkpoint.safetensors_file import Entry, SafetensorsFile, write_safetensors
from herd.model.encoder import EncoderClassifier
from herd.model.encoder_config import EncoderConfig

ARCHITECTURE = "DebertaV2ForSequenceClassification"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_NOT_PARAMETERS = ("deberta.embeddings.position_ids",)

# Options with one supported value; the second is what the absence of the key means.
_FIXED: dict[str, tuple[Any, Any]] = {
    "relative_attention": (True, False),
    "position_biased_input": (False, True),
    "share_att_key": (True, False),
    "norm_rel_ebd": ("layer_norm", "none"),
    "type_vocab_size": (0, 0),
    "conv_kernel_size": (0, 0),
    "hidden_act": ("gelu", "gelu"),
    "pooler_hidden_act": ("gelu", "gelu"),
}
_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "position_buckets",
)
_NUMBERS = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "initializer_range")


def encoder_config_from_json(raw: Mapping[str, Any], where: Path | str) -> EncoderConfig:
    """The config that a `config.json` describes. Raises CheckpointError for another architecture or an option herd does not have."""
    architectures = raw.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(
            f"{where} names the architecture {architectures!r}, expected [{ARCHITECTURE!r}]", hint=_architecture_hint(raw)
        )
    _check_options(raw, where)
    integers: dict[str, Any] = {name: _integer(raw, name, where) for name in _INTEGERS}
    numbers: dict[str, Any] = {name: _number(raw[name], name, where) for name in (*_NUMBERS, "cls_dropout") if raw.get(name) is not None}
    numbers.setdefault("cls_dropout", numbers.get("hidden_dropout_prob", 0.1))
    distance = _integer({"max_relative_positions": -1, **raw}, "max_relative_positions", where)
    reach = integers["max_position_embeddings"] if distance < 1 else distance
    padding = _integer({"pad_token_id": 0, **raw}, "pad_token_id", where)
    labels = _labels(raw, where)
    try:
        return EncoderConfig(**integers, **numbers, max_relative_positions=reach, pad_token_id=padding, id2label=labels)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error


def encoder_config_to_json(config: EncoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What `config.json` holds for a model stored in `dtype`."""
    fields = {name: getattr(config, name) for name in (*_INTEGERS, *_NUMBERS, "max_relative_positions", "cls_dropout", "pad_token_id")}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "deberta-v2",
        **fields,
        **{name: value for name, (value, _) in _FIXED.items() if name != "conv_kernel_size"},
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": config.hidden_size,
        "id2label": {str(index): label for index, label in enumerate(config.id2label)},
        "label2id": {label: index for index, label in enumerate(config.id2label)},
        "torch_dtype": _DTYPE_NAMES[dtype],
        "dtype": _DTYPE_NAMES[dtype],
    }


def load_encoder(path: Path | str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> EncoderClassifier:
    """The classifier stored in the folder `path`, in evaluation mode.

    Args:
        path: A folder with config.json and model.safetensors.
        dtype: What to cast the weights to; the dtype they are stored in when None.
        device: Where to put them.

    Raises:
        NotFoundError: The folder or one of its files is absent.
        CheckpointError: The config asks for something else, or the file is damaged or does not match it.
        ConfigError: The config's numbers contradict each other.
    """
    folder = Path(path)
    config = encoder_config_from_json(read_json_object(folder / "config.json"), folder / "config.json")
    file = folder / "model.safetensors"
    if not file.is_file():
        raise NotFoundError(f"{file} does not exist", hint="herd reads an encoder from safetensors only; convert pickled weights first")
    with closing(SafetensorsFile(file)) as weights:
        stored = _check_entries(weights.entries, config, file)
        with torch.device("meta"):
            model = EncoderClassifier(config)
        for name in config.parameter_shapes():
            _assign(model, name, weights.read(name).to(device=device, dtype=dtype or stored))
    return model.eval()


def save_encoder(model: EncoderClassifier, folder: Path | str, *, overwrite: bool = False) -> None:
    """Write config.json and model.safetensors, whole or not at all.

    Raises UsageError if `folder` is not empty and `overwrite` is false, CheckpointError for a dtype that the format does not name.
    """
    if model.dtype not in _DTYPE_NAMES:
        raise CheckpointError(f"an encoder in {model.dtype} cannot be saved", hint="cast it to float32, bfloat16 or float16")
    tensors = model.state_dict()
    declared = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        text = json.dumps(encoder_config_to_json(model.config, model.dtype), indent=2)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        write_safetensors(temporary / "model.safetensors", declared, (tensor.cpu() for tensor in tensors.values()))


def _architecture_hint(raw: Mapping[str, Any]) -> str:
    if raw.get("model_type") == "deberta-v2":
        return "only the sequence classification head is supported"
    return "this loads Prompt Guard; a Llama is loaded with herd.checkpoint.load"


def _check_options(raw: Mapping[str, Any], where: Path | str) -> None:
    for name, (supported, default) in _FIXED.items():
        value = raw.get(name, default)
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            raise CheckpointError(
                f"{where} has {name} {value!r}, herd's encoder only has {supported!r}",
                hint="Prompt Guard's config.json has the supported options",
            )
    terms = raw.get("pos_att_type")
    names = [term.strip() for term in terms.lower().split("|")] if isinstance(terms, str) else terms
    if not isinstance(names, list) or sorted(map(str, names)) != ["c2p", "p2c"]:
        raise CheckpointError(
            f"{where} has pos_att_type {terms!r}, herd's encoder needs both p2c and c2p", hint="Prompt Guard has ['p2c', 'c2p']"
        )
    for name in ("embedding_size", "pooler_hidden_size"):
        width = raw.get(name)
        if width is not None and width != raw.get("hidden_size"):
            raise CheckpointError(f"{where} has {name} {width!r} but hidden_size {raw.get('hidden_size')!r}", hint="they must be equal")
    if raw.get("attention_head_size") is not None:
        raise CheckpointError(f"{where} sets attention_head_size, herd's encoder divides hidden_size evenly", hint="remove the option")


def _integer(raw: Mapping[str, Any], name: str, where: Path | str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        problem = f"lacks {name}" if value is None else f"has {name} {value!r}, expected an integer"
        raise CheckpointError(f"{where} {problem}", hint="take config.json from the published model")
    return value


def _number(value: object, name: str, where: Path | str) -> float:
    # The bound keeps an integer of four hundred digits from overflowing the conversion.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise CheckpointError(f"{where} has {name} {value!r}, expected a number", hint="take config.json from the published model")
    return float(value)


def _labels(raw: Mapping[str, Any], where: Path | str) -> tuple[str, ...]:
    labels = raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(labels, dict) or set(labels) != {str(index) for index in range(len(labels))}:
        raise CheckpointError(f"{where} has id2label {labels!r:.200}, expected names for 0, 1, 2 ...", hint="number the classes from 0")
    return tuple(str(labels[str(index)]) for index in range(len(labels)))


def _check_entries(found: Mapping[str, Entry], config: EncoderConfig, file: Path) -> torch.dtype:
    """Compare names, shapes and dtypes with the config's; returns the stored dtype of the embedding."""
    entries = {name: entry for name, entry in found.items() if name not in _NOT_PARAMETERS}
    # A config that claims a billion layers must be refused before their names are made.
    if config.num_hidden_layers > len(entries):
        message = f"config.json has {config.num_hidden_layers:,} layers, but {file} holds {len(entries):,} tensors in all"
        raise CheckpointError(message, hint="the two files belong to different models")
    raise_first(compare_shapes(config.parameter_shapes(), {name: entry.shape for name, entry in entries.items()}, str(file)))
    for name, entry in entries.items():
        if entry.dtype not in _DTYPE_NAMES:
            raise CheckpointError(f"{name} in {file} is stored as {entry.code}", hint="expected F32, BF16 or F16")
    return entries["deberta.embeddings.word_embeddings.weight"].dtype


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
