"""The Llama 3 tokenizer: byte-level BPE by rank over tiktoken, 256 special tokens, and an encoder that special-token text cannot fool.

By default text that spells a special token is encoded as ordinary text; only the prompt format emits special ids. Formats of its files
are in `rank_file` (Meta's tokenizer.model) and `tokenizer_json` (Hugging Face). Knows nothing of messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import regex
import tiktoken

from herd.base.errors import NotFoundError, TokenizerError
from herd.text.rank_file import Ranks, check_ranks, read_ranks, write_ranks
from herd.text.specials import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_TEXT,
    EOM,
    EOT,
    FINETUNE_RIGHT_PAD,
    PYTHON_TAG,
    SPECIAL_TOKENS,
    START_HEADER,
)
from herd.text.stream import StreamDecoder

SPLIT_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How text is cut before merging; Unicode property classes. From Meta's released tokenizer."""

MAX_PIECE_CHARS = 400_000
MAX_RUN_CHARS = 25_000
_SPACE, _NOT_SPACE = re.compile(r"\s"), re.compile(r"\S")

Specials = Literal["all"] | Collection[str]


class Tokenizer:
    """Encode text to ids and ids to text.

    `ranks` maps token bytes to ids 0..n-1; `special_tokens` are the names of ids n, n+1, ... in order.
    """

    def __init__(
        self, ranks: Ranks, *, special_tokens: Sequence[str] | Mapping[str, int] = SPECIAL_TOKENS, split_regex: str = SPLIT_REGEX
    ) -> None:
        check_ranks(ranks, "the vocabulary")
        self.ranks = ranks
        self.num_base = len(ranks)
        self.split_regex = split_regex
        if not isinstance(special_tokens, Mapping):
            special_tokens = {name: self.num_base + offset for offset, name in enumerate(special_tokens)}
        self.special_tokens: dict[str, int] = dict(special_tokens)
        self.vocab_size = max(self.num_base, 1 + max(self.special_tokens.values(), default=-1))
        self._names = {token_id: name for name, token_id in self.special_tokens.items()}
        try:
            self._encoding = tiktoken.Encoding("herd", pat_str=split_regex, mergeable_ranks=ranks, special_tokens=self.special_tokens)
        except ValueError as error:
            raise TokenizerError(
                f"the split regex cannot be used: {str(error)[:200]}", hint="Llama 3's is tokenizer.SPLIT_REGEX"
            ) from error
        self._bytes: list[bytes] = [b""] * self.vocab_size
        for token, rank in ranks.items():
            self._bytes[rank] = token
        for name, token_id in self.special_tokens.items():
            self._bytes[token_id] = name.encode()

    def special_id(self, name: str) -> int:
        """The id of a special token. Raises TokenizerError if there is none of that name."""
        if name not in self.special_tokens:
            raise TokenizerError(f"this tokenizer has no special token {name}", hint="it is not a Llama 3 tokenizer")
        return self.special_tokens[name]

    @cached_property
    def bos_id(self) -> int:
        """<|begin_of_text|>."""
        return self.special_id(BEGIN_OF_TEXT)

    @cached_property
    def eos_id(self) -> int:
        """<|end_of_text|>: ends a document; base models stop at it."""
        return self.special_id(END_OF_TEXT)

    @cached_property
    def eot_id(self) -> int:
        """<|eot_id|>: ends a turn."""
        return self.special_id(EOT)

    @cached_property
    def eom_id(self) -> int:
        """<|eom_id|>: ends a message whose turn goes on after a tool has run. Llama 3 of April 2024 has none and stops at eot alone."""
        return self.special_tokens.get(EOM, self.eot_id)

    @cached_property
    def python_tag_id(self) -> int:
        """<|python_tag|>: opens a tool call."""
        return self.special_id(PYTHON_TAG)

    @cached_property
    def start_header_id(self) -> int:
        """<|start_header_id|>: opens a message's header."""
        return self.special_id(START_HEADER)

    @cached_property
    def end_header_id(self) -> int:
        """<|end_header_id|>: closes a message's header."""
        return self.special_id(END_HEADER)

    @cached_property
    def pad_id(self) -> int:
        """<|finetune_right_pad_id|>, or end of text where that does not exist yet."""
        return self.special_tokens.get(FINETUNE_RIGHT_PAD, self.eos_id)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end generation: end of text, end of message, end of turn."""
        return frozenset((self.eos_id, self.eom_id, self.eot_id))

    def special_name(self, token_id: int) -> str | None:
        """The name of a special id, None for an ordinary one."""
        return self._names.get(token_id)

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, allowed_special: Specials = (), disallowed_special: Specials = ()
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text; lone surrogates become U+FFFD.
            bos: put <|begin_of_text|> before it.
            eos: put <|end_of_text|> after it.
            allowed_special: special tokens whose names become their ids ("all", or names). By default none: their text stays text.
            disallowed_special: special tokens whose names are refused with TokenizerError ("all": every one not allowed).

        Raises:
            TokenizerError: the text spells a disallowed special token, or a name is not a special token.
        """
        if len(text) <= MAX_RUN_CHARS and not (bos or eos or allowed_special or disallowed_special):
            return self._encoding.encode_ordinary(text)
        allowed = self._chosen(allowed_special)
        refused = (self._chosen(disallowed_special) - allowed) if disallowed_special else frozenset[str]()
        if refused:
            self._refuse(text, refused)
        ids = [self.bos_id] if bos else []
        for piece in _pieces(text):
            ids.extend(self._encode_piece(piece, allowed))
        if eos:
            ids.append(self.eos_id)
        return ids

    def _encode_piece(self, piece: str, allowed: frozenset[str]) -> list[int]:
        if allowed:
            return self._encoding.encode(piece, allowed_special=set(allowed), disallowed_special=())
        return self._encoding.encode_ordinary(piece)

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 2) -> list[list[int]]:
        """Ids of many texts as ordinary text, encoded in threads."""
        groups = [list(_pieces(text)) for text in texts]
        encoded = iter(self._encoding.encode_ordinary_batch([piece for group in groups for piece in group], num_threads=num_threads))
        return [next(encoded) if len(group) == 1 else [token_id for _ in group for token_id in next(encoded)] for group in groups]

    def _chosen(self, specials: Specials) -> frozenset[str]:
        if specials == "all":
            return frozenset(self.special_tokens)
        names = frozenset(specials)
        unknown = sorted(names - self.special_tokens.keys())
        if unknown:
            raise TokenizerError(f"{unknown[0]!r} is not a special token of this tokenizer", hint="names look like <|eot_id|>")
        return names

    def _refuse(self, text: str, refused: frozenset[str]) -> None:
        found = self._special_regex(refused).search(text)
        if found is None:
            return
        name = found.group()
        raise TokenizerError(
            f"the text spells the special token {name} at character {found.start():,}",
            hint=f"to encode it as plain text leave disallowed_special empty; to mean the token pass allowed_special={{{name!r}}}; "
            f"to refuse it, as now, keep it in disallowed_special",
        )

    def _special_regex(self, names: Collection[str]) -> regex.Pattern[str]:
        return regex.compile("|".join(regex.escape(name) for name in sorted(names)))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; a special token's are its name. Raises TokenizerError for an id out of range."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"token id {token_id} is out of range: this tokenizer has ids 0 to {self.vocab_size - 1}",
                hint="the ids come from another tokenizer, or the model has more rows than its tokenizer",
            )
        return self._bytes[token_id]

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        """The bytes of a sequence of ids. Raises TokenizerError for an id out of range."""
        return b"".join(self.token_bytes(token_id) for token_id in ids if not (skip_special and token_id in self._names))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of any sequence of ids; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError for an id out of range."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self.token_bytes)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.model (Meta's format) and tokenizer.json with its companions (Hugging Face's) into a folder.

        A tokenizer.model says nothing of special tokens or regex: where they are not Llama's, tokenizer.json stands alone.
        """
        from herd.text.tokenizer_json import write_tokenizer_json

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._has_usual_specials() and self.split_regex == SPLIT_REGEX:
            write_ranks(self.ranks, folder / "tokenizer.model")
        else:
            (folder / "tokenizer.model").unlink(missing_ok=True)
        write_tokenizer_json(self, folder)

    def _has_usual_specials(self) -> bool:
        """Whether ids and named tokens are where every reader of a tokenizer.model puts them; names of reserved ones may differ."""
        usual = {name: self.num_base + offset for offset, name in enumerate(SPECIAL_TOKENS)}
        moved = [name for name, place in usual.items() if "reserved" not in name and self.special_tokens.get(name, place) != place]
        return not moved and set(self.special_tokens.values()) == set(usual.values())


def _pieces(text: str) -> Iterator[str]:
    """Cut text so that no piece is over 400,000 characters and no run of space or of non-space over 25,000: encoding time stays linear."""
    text = without_surrogates(text)
    for start in range(0, len(text), MAX_PIECE_CHARS):
        yield from _cut_runs(text[start : start + MAX_PIECE_CHARS])


def without_surrogates(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 can spell, as U+FFFD; two that make a pair become their character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if _has_surrogate(text) else text


def _has_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _may_have_long_run(text: str) -> bool:
    """Whether a run may have to be cut: such a run covers one of these blocks whole. Nearly every block shows both kinds early on."""
    half = MAX_RUN_CHARS // 2
    starts = range(0, len(text) - half + 1, half)
    return any(not (_SPACE.search(text, start, start + half) and _NOT_SPACE.search(text, start, start + half)) for start in starts)


def _cut_runs(text: str) -> Iterator[str]:
    if len(text) <= MAX_RUN_CHARS or not _may_have_long_run(text):
        if text:
            yield text
        return
    run, is_space, start = 0, text[0].isspace(), 0
    for index, character in enumerate(text):
        if character.isspace() == is_space:
            run += 1
            if run > MAX_RUN_CHARS:
                yield text[start:index]
                start, run = index, 1
        else:
            run, is_space = 1, not is_space
    yield text[start:]


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer from a file (tokenizer.model or tokenizer.json) or from a folder that holds one; tokenizer.model is preferred.

    Raises NotFoundError if there is none, TokenizerError if the file is damaged or of another kind.
    """
    from herd.text.tokenizer_json import read_tokenizer_json

    path = Path(path)
    if path.is_dir():
        for name in ("tokenizer.model", "tokenizer.json", "original/tokenizer.model"):
            if (path / name).is_file():
                path = path / name
                break
        else:
            raise NotFoundError(f"no tokenizer.model or tokenizer.json in {path}", hint="copy the model's tokenizer file into the folder")
    if path.suffix == ".json":
        return read_tokenizer_json(path)
    return Tokenizer(read_ranks(path))
