"""What a server is started with: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from herd.base.errors import ConfigError
from herd.inference.providers import ProviderConfig
from herd.stack.keys import ApiKey

MIB = 2**20


def is_loopback(host: str) -> bool:
    """Whether an address or a name is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """The most that one request may ask for; checked before anything is allocated.

    Attributes:
        body_bytes: of a JSON body.
        file_bytes: of an uploaded file.
        n: answers of one prompt, also `best_of`.
        prompts: prompts of one call.
        logprobs: likeliest tokens reported at a position.
        stops: stop texts.
        stop_chars: characters of a stop text.
        tools: tools on offer.
        messages: of a conversation.
        sequences: n x prompts of one call.
        stored_bytes: of all files of one key.
        open_batches: of one key.
        vector_stores: of one key.
        chat_bytes: of all chats that the page keeps for one key.
    """

    body_bytes: int = 16 * MIB
    file_bytes: int = 256 * MIB
    n: int = 128
    prompts: int = 2048
    logprobs: int = 20
    stops: int = 16
    stop_chars: int = 1024
    tools: int = 128
    messages: int = 10_000
    sequences: int = 4096
    stored_bytes: int = 8192 * MIB
    open_batches: int = 100
    vector_stores: int = 1000
    chat_bytes: int = 1024 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The server's settings.

    Attributes:
        model_name: what `/v1/models` lists and requests name.
        host, port: where it listens.
        keys: who may ask; none on loopback lets everyone on this machine in.
        allowed_hosts: names besides the usual ones that a Host header may hold.
        allowed_origins: web pages (scheme://host[:port]) that may ask from a browser.
        ttft_target_s: a request whose first token would take longer is refused with 429.
        max_waiting: requests in flight at most.
        caps: of one request.
        header_timeout_s: a connection has to send its headers within it.
        body_timeout_s: and after each piece of a body the next one.
        write_timeout_s: a reader who takes nothing for so long is let go.
        keep_alive_s: between comments on an event stream where nothing else is said.
        drain_s: what requests in flight get to end after SIGTERM.
        log_content: whether logs may hold prompts and answers.
        access_log: whether every request is logged.
        state_dir: where files and batches are kept; None has none.
        providers: remote servers whose models are served beside the engine's.
        shields: what stands before and behind every model, each NAME or NAME=THRESHOLD; `herd serve` sets its defaults.
        mcp_networks: private networks, such as 127.0.0.0/8, whose MCP servers clients may register.
        database_url: the database, where it is not a file of the state directory.
        files_url: a folder or an fsspec URL of files, where they are not in the state directory.
        runs_dir: a folder of training runs whose curves are told; None tells of none.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8321
    keys: tuple[ApiKey, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    ttft_target_s: float = 60.0
    max_waiting: int = 4096
    caps: Caps = field(default_factory=Caps)
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    keep_alive_s: float = 10.0
    drain_s: float = 30.0
    log_content: bool = False
    access_log: bool = True
    state_dir: str | None = None
    providers: tuple[ProviderConfig, ...] = ()
    shields: tuple[str, ...] = ()
    mcp_networks: tuple[str, ...] = ()
    database_url: str | None = None
    files_url: str | None = None
    runs_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"the server would listen on {self.host} without keys, for everyone who can reach it",
                hint="give --api-key-file FILE (one key a line), or listen on --host 127.0.0.1",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, it must be 0 (any free one) to 65535", hint="choose --port 8321")
        for name in ("ttft_target_s", "header_timeout_s", "body_timeout_s", "write_timeout_s", "keep_alive_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be over 0", hint=f"leave {name} at its default")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
