"""A tokenizer trained on a page of text, and Meta's own where the shared data has it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from herd.text.bpe_train import train_bpe
from herd.text.tokenizer import Tokenizer, load_tokenizer

PAGE = """The herd grazes on the high plain. A cria is a young llama, and the cria follows the herd; it's 123 days old.
The wind is cold in the evening; the herd lies down close together. In the morning the sun rises over the mountains.
Ein kleines Lama läuft über die Wiese. Où est le troupeau? El rebaño está en la montaña. ลามะอยู่บนภูเขา। झुंड पहाड़ पर है। 🦙🦙🦙
    indented();    {"name": "f", "parameters": {}}
"""


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """256 bytes, 144 merges (some of them halves of characters) and the special tokens."""
    return train_bpe([PAGE] * 4, 400)


@cache
def _loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture
def llama3_file(shared_data: Path) -> Path:
    """Meta's tokenizer.model; skips where it is absent."""
    path = shared_data / "reference" / "llama3" / "tokenizer.model"
    if not path.exists():
        pytest.skip(f"needs the published tokenizer, which is not at {path}")
    return path


@pytest.fixture
def llama3(llama3_file: Path) -> Tokenizer:
    """Meta's tokenizer, loaded once a session."""
    return _loaded(llama3_file)
