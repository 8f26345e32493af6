"""Fetching a URL: a test for each hole that others had (two parsers, rebinding, redirects, disguised ranges, bombs); pages as text."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_http import Answer, Asked, FakeServer, serving  # pyright: ignore[reportMissingImports]
from hypothesis import given
from hypothesis import strategies as st

from herd.tools.errors import DeniedAddressError, ToolError
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import ToolResult
from herd.tools.web.address import WebPolicy, is_allowed, join, read_url
from herd.tools.web.fetch import Fetched, Fetcher, FetchLimits
from herd.tools.web.fetch_tool import FetchTool
from herd.tools.web.html import page_text
from herd.tools.web.inflate import Inflater, TooLargeError, gunzip

LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)


def page(asked: Asked) -> Answer:  # noqa: C901 - a list of pages
    """What the fake web has, by path."""
    path = asked.path
    html = {"Content-Type": "text/html; charset=utf-8"}
    if path.startswith("/to?"):
        return Answer(status=302, headers={"Location": path[4:]})
    if path == "/loop":
        return Answer(status=302, headers={"Location": "/loop"})
    if path == "/gzip-bomb":
        return Answer(headers={**html, "Content-Encoding": "gzip"}, body=gzip.compress(bytes(64 << 20)))
    if path == "/gzip":
        return Answer(headers={**html, "Content-Encoding": "gzip"}, body=gzip.compress(b"<p>packed</p>"))
    if path == "/raw-deflate":
        machine = zlib.compressobj(wbits=-15)
        return Answer(headers={**html, "Content-Encoding": "deflate"}, body=machine.compress(b"<p>packed</p>") + machine.flush())
    if path == "/brotli":
        return Answer(headers={**html, "Content-Encoding": "br"}, body=b"xxx")
    if path == "/damaged":
        return Answer(headers={**html, "Content-Encoding": "gzip"}, body=b"\x1f\x8b\x08nonsense")
    if path == "/endless":
        return Answer(headers={"Content-Type": "text/plain"}, pieces=iter(lambda: b"x" * 65536, b""))
    if path == "/drip":
        return Answer(headers=html, pieces=(time.sleep(0.2) or b"x" for _ in range(100)))
    if path == "/binary":
        return Answer(headers={"Content-Type": "application/x-executable"}, body=b"\x7fELF")
    if path == "/picture":
        return Answer(headers={"Content-Type": "image/png"}, body=b"\x89PNG")
    if path == "/latin":
        return Answer(headers={"Content-Type": "text/plain; charset=iso-8859-1"}, body="ü".encode("latin-1"))
    if path == "/codec":
        return Answer(headers={"Content-Type": "text/plain; charset=zip"}, body=zlib.compress(bytes(1000)))
    if path == "/meta":
        return Answer(headers={"Content-Type": "text/html"}, body='<meta charset="shift_jis"><p>日本</p>'.encode("shift_jis"))
    if path == "/missing":
        return Answer(status=404, headers=html, body=b"internal: /etc/secret")
    return Answer(headers=html, body=b"<html><head><title>A  title</title><style>p{}</style></head><body><script>evil()</script><p>One <b>bold</b> word."
                  b"</p><ul><li>a</li><li>b</li></ul><a href='/next#x'>next</a></body></html>")  # fmt: skip


@pytest.fixture(name="web", scope="module")
def web_fixture() -> Iterator[FakeServer]:
    with serving(page) as server:
        yield server


def policy(web: FakeServer, *, open_: bool = True) -> WebPolicy:
    return WebPolicy(ports=frozenset({80, 443, web.port}), allowed_networks=LOOPBACK if open_ else ())


def get(web: FakeServer, path: str, *, open_: bool = True, resolver: Any = None, **limits: Any) -> Fetched:
    options = {} if resolver is None else {"resolver": resolver}
    fetcher = Fetcher(policy(web, open_=open_), FetchLimits(**limits), **options)
    return asyncio.run(fetcher.get(path if "://" in path else web.url + path))


def call(web: FakeServer, path: str, **arguments: Any) -> ToolResult:
    tool = FetchTool(Fetcher(policy(web)))
    registry = Registry([ToolGroup(name="web", description="", tools=(tool,))])
    return asyncio.run(registry.call("fetch_url", {"url": web.url + path, **arguments}))


PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "168.63.129.16",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "fec0::1",
    "3fff::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_inside_is_allowed_in_any_dress(address: str) -> None:
    assert not is_allowed(address, WebPolicy())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, WebPolicy())


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_is_allowed_is_global(address: Any) -> None:
    if is_allowed(str(address), WebPolicy()):
        assert address.is_global and not address.is_private and not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_within_another_is_never_allowed_where_it_is_not_itself(address: Any) -> None:
    if not is_allowed(str(address), WebPolicy()):
        for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
            assert not is_allowed(wrapped, WebPolicy())


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.:80/x",
        "http://①②⑦.⓪.⓪.①/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::1]/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1%25lo]/",
        "http://user:pass@127.0.0.1/",
        "http://example.com@127.0.0.1/",
        "http://127.0.0.1:80@example.com/",
        "http://127.0.0.1%00.example.com/",
        "http://127.0.0.1#@example.com/",
    ],
)
def test_the_machine_itself_cannot_be_fetched_by_any_spelling(web: FakeServer, url: str) -> None:
    before = len(web.asked)
    with pytest.raises(ToolError):
        get(web, url, open_=False)
    assert len(web.asked) == before


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example\\@127.0.0.1/",
        "http:\\\\127.0.0.1/",
        "http://good.example\\.evil.example/",
        "http://a b/",
        "http://a\tb/",
        "http://a\nb/",
        "http://a\r\nHost: b/",
        "http:///x",
        "http://",
        "//example.com/",
        "example.com",
        "http://[::1",
        "http://exa_mple..com/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://-bad.example/",
        "http://" + "a" * 300 + "/",
        "http://example.com/" + "a" * 5000,
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ToolError):
        read_url(url, WebPolicy())


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/", "gopher://x/", "javascript:alert(1)", "data:text/html,x", "unix:/run/x"]
)
def test_only_http_and_https(url: str) -> None:
    with pytest.raises(DeniedAddressError, match="only http and https"):
        read_url(url, WebPolicy())


@pytest.mark.parametrize("port", [22, 25, 3306, 6379, 8321, 9200, 11211])
def test_ports_of_other_services_are_refused(port: int) -> None:
    with pytest.raises(DeniedAddressError, match=f"port {port}"):
        read_url(f"http://example.com:{port}/", WebPolicy())


def test_a_url_in_another_script_is_read_once_into_its_plain_form() -> None:
    address = read_url("https://Bücher.example/weiß?q=é", WebPolicy())
    assert str(address) == "https://xn--bcher-kva.example/wei%C3%9F?q=%C3%A9"
    assert read_url(str(address), WebPolicy()) == address


@given(st.text(max_size=60))
def test_reading_a_url_raises_nothing_but_a_refusal(text: str) -> None:
    for url in (text, "http://" + text, "http://example.com/" + text):
        try:
            address = read_url(url, WebPolicy())
        except ToolError:
            continue
        assert str(address).isascii() and "\\" not in str(address)
        assert read_url(str(address), WebPolicy()) == address


def test_a_name_that_resolves_inside_is_denied(web: FakeServer) -> None:
    async def inside(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    before = len(web.asked)
    with pytest.raises(DeniedAddressError, match="public internet"):
        get(web, f"http://innocent.example:{web.port}/", open_=False, resolver=inside)
    assert len(web.asked) == before


def test_a_name_with_one_address_inside_is_denied_whole(web: FakeServer) -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "127.0.0.1"]

    with pytest.raises(DeniedAddressError):
        get(web, f"http://innocent.example:{web.port}/", open_=False, resolver=both)


def test_rebinding_finds_no_second_look_up(web: FakeServer) -> None:
    """The name is resolved once for each connection, and what was checked is what is connected to."""
    looked_up: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["10.0.0.1"]

    got = get(web, f"http://rebind.example:{web.port}/", resolver=rebinding)
    assert got.status == 200 and looked_up == ["rebind.example"]
    assert web.asked[-1].headers["host"] == f"rebind.example:{web.port}"
    # And with the answers in the other order the inside is never connected to.
    answers = iter([["10.0.0.1"], ["127.0.0.1"]])

    async def other(host: str, port: int) -> list[str]:
        return next(answers)

    with pytest.raises(DeniedAddressError):
        get(web, f"http://rebind.example:{web.port}/", resolver=other)


def test_a_redirect_inside_is_denied(web: FakeServer) -> None:
    for target in (
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "//10.0.0.1/",
        "http://localhost.:80/",
        "file:///etc/passwd",
        "http://x\\@127.0.0.1/",
    ):
        with pytest.raises(ToolError):
            get(web, f"/to?{target}")


def test_a_redirect_is_resolved_anew(web: FakeServer) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "first.example" else ["192.168.1.1"]

    with pytest.raises(DeniedAddressError, match=r"second\.example"):
        get(web, f"http://first.example:{web.port}/to?http://second.example/", resolver=resolver)


def test_redirects_are_followed_a_few_times_and_not_down_to_http(web: FakeServer) -> None:
    assert get(web, "/to?/page").url == f"{web.url}/page"
    with pytest.raises(ToolError, match="more than 5 times"):
        get(web, "/loop")
    with pytest.raises(DeniedAddressError, match="from https to http"):
        join(read_url("https://example.com/", WebPolicy()), "http://example.com/", WebPolicy())


def test_a_gzip_bomb_is_stopped_before_it_is_there(web: FakeServer) -> None:
    with pytest.raises(TooLargeError, match="over the limit of 1000000 bytes"):
        get(web, "/gzip-bomb", max_bytes=1_000_000)


def test_an_endless_body_is_cut_and_told(web: FakeServer) -> None:
    got = get(web, "/endless", max_sent_bytes=200_000)
    assert got.truncated and len(got.body) == 200_000
    result = asyncio.run(FetchTool(Fetcher(policy(web), FetchLimits(max_sent_bytes=1000))).call({"url": web.url + "/endless"}, None))  # type: ignore[arg-type]
    assert result.truncated and "longer than what is fetched" in result.text


def test_a_dripping_body_is_stopped_in_time(web: FakeServer) -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"within 0\.5 seconds"):
        get(web, "/drip", timeout_s=0.5)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("path", "says"), [("/brotli", "packed as 'br'"), ("/damaged", "damaged")])
def test_packing_that_was_not_asked_for_or_is_damaged_is_refused(web: FakeServer, path: str, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        get(web, path)


@pytest.mark.parametrize("path", ["/gzip", "/raw-deflate"])
def test_packed_pages_are_unpacked(web: FakeServer, path: str) -> None:
    assert get(web, path).body == b"<p>packed</p>"


def test_nothing_of_ours_goes_along(web: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    get(web, "/page")
    assert set(web.asked[-1].headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}


def test_a_host_that_is_not_there_is_told_without_details(web: FakeServer) -> None:
    async def closed(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    fetcher = Fetcher(WebPolicy(ports=frozenset({1}), allowed_networks=LOOPBACK), resolver=closed)
    with pytest.raises(ToolError, match=r"gone\.example cannot be reached, or speaks no HTTP") as refused:
        asyncio.run(fetcher.get("http://gone.example:1/"))
    assert "127.0.0.1" not in refused.value.message


def test_a_page_as_text(web: FakeServer) -> None:
    result = call(web, "/page", links=True)
    assert result.ok
    assert result.text == f"{web.url}/page\nA title\n\nOne bold word.\na\nb\nnext\n\nLinks:\n- next: {web.url}/next"
    assert "Links:" not in call(web, "/page").text


def test_other_kinds_of_content(web: FakeServer) -> None:
    assert call(web, "/binary").error_code == "not_text"
    picture = call(web, "/picture")
    assert [(file.name, file.data) for file in picture.attachments] == [("picture.png", b"\x89PNG")]
    assert call(web, "/latin").text.endswith("ü")
    assert call(web, "/meta").text.endswith("日本")
    assert call(web, "/codec").ok
    missing = call(web, "/missing")
    assert (missing.error_code, missing.text) == ("http_status", "the page answered with status 404")


def test_the_tool_refuses_in_words(web: FakeServer) -> None:
    registry = Registry([ToolGroup(name="web", description="", tools=(FetchTool(),))])
    result = asyncio.run(registry.call("fetch_url", {"url": "http://169.254.169.254/latest/meta-data"}))
    assert (result.ok, result.error_code) == (False, "denied_address")
    assert FetchTool().taint.reads_untrusted and FetchTool().taint.acts_outside


def test_a_deeply_nested_page_is_read() -> None:
    assert "x" in page_text("<div>" * 20_000 + "x", "http://a/").text


@given(st.text(max_size=200))
def test_any_text_is_a_page(text: str) -> None:
    page_text(text, "http://a/")
    page_text(f"<p>{text}<a href='{text}'>l</a>", "http://a/")


@given(st.binary(max_size=2000), st.integers(0, 3000))
def test_unpacking_is_exact_or_refused(data: bytes, limit: int) -> None:
    packed = gzip.compress(data)
    if len(data) <= limit:
        assert gunzip(packed, limit) == data
        assert b"".join(map(Inflater("gzip", limit).feed, [packed[:7], packed[7:]])) == data
        assert gunzip(packed + packed, 2 * limit) == data + data
    else:
        with pytest.raises(TooLargeError):
            gunzip(packed, limit)


@given(st.binary(max_size=300))
def test_unpacking_nonsense_is_refused(data: bytes) -> None:
    for encoding in ("gzip", "deflate"):
        try:
            Inflater(encoding, 10_000).feed(data)
        except ToolError:
            continue


def test_limits_are_a_value() -> None:
    assert replace(FetchLimits(), timeout_s=1.0).timeout_s == 1.0
