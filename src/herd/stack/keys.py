"""API keys: read from a file, kept as digests, compared in constant time; what each may use, counted by the minute.

A line of a key file is `KEY`, or `NAME KEY`, and then any of `rpm=60` (requests a minute), `tpm=100000` (tokens a minute, prompt and
answer), `concurrent=10` (requests in flight), `priority=0` (lower goes first) and `admin=1` (may see what the machine has besides:
training runs, and models on its disk). `#` begins a comment.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from herd.base.errors import ConfigError, NotFoundError, did_you_mean

MIN_KEY_CHARS = 16
_LIMITS = ("rpm", "tpm", "concurrent", "priority", "admin")


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key by its digest, whose it is, and its limits; None is no limit. `admin` over 0 may see training runs and models on disk."""

    name: str
    digest: bytes = field(repr=False)
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    priority: int = 0
    admin: int = 0


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises NotFoundError, and ConfigError with the number of the line that is wrong; never with the key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no key file {path}", hint="make one: herd keys new >> FILE, or one key a line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}", hint="it has to be a text file") from error
    keys = [_read_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.partition("#")[0].strip()]
    if not keys:
        raise ConfigError(f"the key file {path} has no keys", hint="write one key a line")
    names = [key.name for key in keys]
    for field_name, values in (("name", names), ("key", [key.digest for key in keys])):
        if len(set(values)) < len(values):
            raise ConfigError(f"{path}: two lines have the same {field_name}", hint="give every client a name and a key of its own")
    return tuple(keys)


def _read_line(line: str, where: str) -> ApiKey:
    words = line.partition("#")[0].split()
    limits = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in _LIMITS)
    plain = [word for word in words if word.split("=", 1)[0] not in limits]
    wrong = next((word for word in plain[2:]), None)
    if wrong is not None or not plain:
        # The word may be the key: it is not told.
        near = did_you_mean((wrong or "").split("=", 1)[0], _LIMITS, otherwise="write NAME KEY rpm=60 tpm=100000")
        raise ConfigError(f"{where}: {len(plain)} words besides the limits, they have to be KEY or NAME KEY", hint=near)
    key = plain[-1]
    if len(key) < MIN_KEY_CHARS:
        raise ConfigError(f"{where}: the key has {len(key)} characters, the least is {MIN_KEY_CHARS}", hint="use `herd keys new`")
    values: dict[str, int] = {}
    for name, text in limits.items():
        try:
            values[name] = int(text)
        except ValueError:
            raise ConfigError(f"{where}: {name} is {text!r}, it must be a whole number", hint=f"write {name}=60") from None
        if values[name] < (1 if name != "priority" else -1000):
            raise ConfigError(f"{where}: {name} is {values[name]}, it must be at least 1", hint=f"leave {name} out for no limit")
    digest = digest_of(key)
    name = plain[0] if len(plain) == 2 else f"key-{digest.hex()[:8]}"
    return ApiKey(name=name, digest=digest, **values)


def new_key() -> str:
    """A key that no one can guess."""
    return "herd-" + secrets.token_urlsafe(32)


def find_key(keys: Iterable[ApiKey], given: str) -> ApiKey | None:
    """The key that was given. Takes the same time whichever it is, and if it is none."""
    digest = digest_of(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


@dataclass(slots=True)
class _Bucket:
    """Refills by `per_minute`, holds no more than that."""

    per_minute: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + max(0.0, now - self.at) * self.per_minute / 60)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Seconds until so much is there."""
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)


class Quota:
    """What one key has used. For one thread."""

    def __init__(self, key: ApiKey, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._key, self._clock = key, clock
        now = clock()
        self._requests = None if key.rpm is None else _Bucket(key.rpm, float(key.rpm), now)
        self._tokens = None if key.tpm is None else _Bucket(key.tpm, float(key.tpm), now)
        self.num_open = 0

    def wait_s(self, num_tokens: int) -> float:
        """Seconds until a request of so many prompt tokens is within the limits; 0 takes it now."""
        if self._key.concurrent is not None and self.num_open >= self._key.concurrent:
            return 1.0
        now, waits = self._clock(), [0.0]
        for bucket, amount in ((self._requests, 1.0), (self._tokens, float(num_tokens))):
            if bucket is not None:
                bucket.refill(now)
                waits.append(bucket.wait_s(amount))
        return max(waits)

    def take(self, num_tokens: int) -> None:
        """Count a request that begins."""
        self.num_open += 1
        if self._requests is not None:
            self._requests.level -= 1
        self.spend(num_tokens)

    def give_back(self, num_tokens: int) -> None:
        """A request that was counted was not taken after all."""
        if self._requests is not None:
            self._requests.level += 1
        self.spend(-num_tokens)
        self.end()

    def spend(self, num_tokens: int) -> None:
        """Count tokens; an answer's are known afterwards, and may leave a debt."""
        if self._tokens is not None:
            self._tokens.level -= num_tokens

    def end(self) -> None:
        """A request ended."""
        self.num_open -= 1
