"""The 256 special tokens of Llama 3.1, in the order of their ids. What matters is the id: names of reserved ones differ between releases.

Offsets count from the end of the base vocabulary (128,000 for Llama 3), so a small tokenizer of our own carries the same tokens.
Meta's July 2024 names; `llama3_special_tokens` gives the names of April 2024, where three ids were still reserved.
"""

from __future__ import annotations

NUM_SPECIAL = 256

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
FINETUNE_RIGHT_PAD = "<|finetune_right_pad_id|>"
STEP = "<|step_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
EOM = "<|eom_id|>"
EOT = "<|eot_id|>"
PYTHON_TAG = "<|python_tag|>"

_NAMED_31 = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    FINETUNE_RIGHT_PAD,
    STEP,
    START_HEADER,
    END_HEADER,
    EOM,
    EOT,
    PYTHON_TAG,
)
_NAMED_3 = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>",
    "<|reserved_special_token_3|>",
    START_HEADER,
    END_HEADER,
    "<|reserved_special_token_4|>",
    EOT,
)


def _numbered(named: tuple[str, ...], first_reserved: int) -> tuple[str, ...]:
    rest = (f"<|reserved_special_token_{first_reserved + number}|>" for number in range(NUM_SPECIAL - len(named)))
    return (*named, *rest)


SPECIAL_TOKENS = _numbered(_NAMED_31, 2)
"""Names by offset: `SPECIAL_TOKENS[9]` is <|eot_id|>, id 128,009 with Llama's base vocabulary."""


def llama3_special_tokens() -> tuple[str, ...]:
    """The names of April 2024 (Llama 3): no padding, step, eom or python tag yet."""
    return _numbered(_NAMED_3, 5)
