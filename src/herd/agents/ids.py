"""Names of agents, sessions, turns, steps and calls: made here, never by a client or a model."""

from __future__ import annotations

import secrets
import time
from typing import Literal

Kind = Literal["agent", "session", "turn", "step", "call", "doc", "file"]


def new_id(kind: Kind) -> str:
    """A name that no one can guess, its kind before it. Names of one process sort by their making, to the millisecond."""
    return f"{kind}_{int(time.time() * 1000):011x}{secrets.token_hex(8)}"
