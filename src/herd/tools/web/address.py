"""Which URLs and addresses a tool may reach. One parser reads a URL, once; what it read is what is connected to.

Denied is every address that is not globally routable, in whatever dress: private, loopback, link-local (cloud metadata lives there),
shared, multicast, reserved; IPv4 within IPv6 (mapped, compatible, 6to4, Teredo, NAT64); and the one metadata service on a public address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import idna

from herd.tools.errors import DeniedAddressError, ToolError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

PORTS = frozenset({80, 443, 8080, 8443})
_MAX_URL_CHARS = 4096
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\<>\"^`{|}]")
_PUBLIC_METADATA = (ipaddress.ip_network("168.63.129.16/32"),)
"""Azure's, which answers only machines of Azure, and those with secrets."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_DENIED_V6 = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "2001::/23", "2002::/16", "::/96", "fec0::/10", "3fff::/20", "5f00::/16")))
_DENIED_V4 = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "192.0.0.0/24")))


@dataclass(frozen=True, kw_only=True, slots=True)
class WebAddress:
    """A URL that was read: http or https, a host in its plain form, a port, and the rest."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port, as the Host header says them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WebPolicy:
    """What may be reached beyond the rule: networks of one's own, by name of the operator, and other ports."""

    ports: frozenset[int] = PORTS
    allowed_networks: tuple[IPNetwork, ...] = ()


def read_url(text: str, policy: WebPolicy) -> WebAddress:
    """Read a URL. Raises ToolError for what is none, DeniedAddressError for what may not be asked for."""
    hint = "give a whole URL such as https://example.com/page"
    if len(text) > _MAX_URL_CHARS:
        raise ToolError(f"the URL has {len(text)} characters of at most {_MAX_URL_CHARS}", hint=hint)
    if _FORBIDDEN.search(text.strip(" ")):
        raise ToolError("the URL holds a space, a control character, a backslash or another character that is not of URLs", hint=hint)
    try:
        parts = urlsplit(text.strip(" "))
        port = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ToolError(f"this is no URL: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https"):
        raise DeniedAddressError(f"only http and https are fetched, not {parts.scheme[:20] or 'this'!r}", hint=hint)
    if "@" in parts.netloc:
        raise DeniedAddressError("a URL with a user name in it is not fetched", hint="leave the part before the @ out")
    if not host:
        raise ToolError("the URL has no host", hint=hint)
    chosen = port if port is not None else 443 if parts.scheme == "https" else 80
    if chosen not in policy.ports:
        raise DeniedAddressError(f"port {chosen} is not fetched from", hint=f"ports: {', '.join(map(str, sorted(policy.ports)))}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii():
        target = "".join(character if character.isascii() else _percent(character) for character in target)
    return WebAddress(scheme=parts.scheme, host=_plain_host(host), port=chosen, target=target)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "replace"))


def _plain_host(host: str) -> str:
    """An address in its one form, or a name in ASCII. Raises ToolError for anything between."""
    if "%" in host:
        raise DeniedAddressError("a host with a % in it is not fetched", hint="name the host plainly")
    if ":" in host:
        return str(ipaddress.IPv6Address(host)) if _is_v6(host) else _no_host(host)
    try:
        name = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return _no_host(host)
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        # 127.1, 0x7f000001 and 2130706433 are addresses to some resolvers and names to others.
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise DeniedAddressError(f"{host[:60]!r} is no address in its plain form", hint="four numbers with dots, or a name") from error
    if len(name) > 253 or not all(_HOST_LABEL.match(label) for label in labels):
        return _no_host(host)
    return name


def _is_v6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _no_host(host: str) -> str:
    raise ToolError(f"{host[:60]!r} is no host", hint="give a whole URL such as https://example.com/page")


def join(base: WebAddress, location: str, policy: WebPolicy) -> WebAddress:
    """Where a redirect leads, read as strictly as the first URL."""
    target = read_url(urljoin(str(base), location), policy)
    if base.scheme == "https" and target.scheme == "http":
        raise DeniedAddressError("the page leads from https to http, which is not followed", hint="ask for the http URL itself")
    return target


def is_allowed(address: str, policy: WebPolicy) -> bool:
    """Whether an address may be connected to."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if any(ip.version == network.version and ip in network for network in policy.allowed_networks):
        return True
    return _is_public(ip)


def _is_public(ip: IPAddress) -> bool:
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return False
        if ip in _NAT64:
            return _is_public(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.scope_id is not None or any(ip in network for network in _DENIED_V6):
            return False
    elif any(ip in network for network in (*_DENIED_V4, *_PUBLIC_METADATA)):
        return False
    return ip.is_global and not (
        ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified
    )


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, by the system's resolver. Raises ToolError if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ToolError(f"the host {host!r} is not known", hint="check its spelling") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def pinned(host: str, port: int, policy: WebPolicy, resolver: Resolve = resolve) -> Sequence[str]:
    """The addresses to connect to: resolved once, all of them allowed. Raises DeniedAddressError if any is not.

    A name with one public and one private address is an attack, and the private one must not be what a retry falls back to.
    """
    addresses = await resolver(host, port)
    if not addresses or not all(is_allowed(address, policy) for address in addresses):
        raise DeniedAddressError(f"{host!r} is not on the public internet, and only that is fetched", hint="ask for a public page")
    return addresses
