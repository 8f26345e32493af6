"""What a model writes is a stranger's text: it can run nothing, load nothing and pretend nothing. And the page itself stays at home."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import ThreadServer, bearer, keys, raw, thread_server  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]
ATTACK = """<script>window.hit = 1</script>

<img src=x onerror="window.hit = 2">

<svg onload="window.hit = 3"><a href="javascript:window.hit=4">x</a></svg>

[click](javascript:window.hit=5) [data](data:text/html,<script>window.hit=6</script>) [odd](vbscript:x)

![picture](https://example.org/track.png)

<iframe srcdoc="<script>parent.hit = 7</script>"></iframe> <style>body { display: none }</style>

<form action="https://example.org"><input name="key"></form>

$\\href{javascript:window.hit=8}{x}$ and $<img src=x onerror=window.hit=9>$

```html
<script>window.hit = 10</script>
```

<div id="prompt" class="note error" style="position:fixed">fake</div>

The end."""


def test_scripts_attributes_links_and_remote_images_do_nothing(open_page: Open) -> None:
    reader = open_page()
    reader.ask("Attack.", ATTACK)
    answer = reader.last.locator(".markdown")
    expect(answer).to_contain_text("The end.")
    for link in answer.locator("a").all():
        link.dispatch_event("click")
    assert reader.page.evaluate("window.hit") is None
    assert answer.locator("script, img, svg, iframe, style, form, input, [onerror], [onload], [style], [id]").count() == 0
    assert {link.get_attribute("href") for link in answer.locator("a[href]").all()} == {"https://example.org/track.png"}
    # Nothing was left out in silence: what is no markdown is shown as it was written.
    expect(answer).to_contain_text('<img src=x onerror="window.hit = 2">')
    expect(answer).to_contain_text("<script>window.hit = 1</script>")
    assert answer.locator(".note").count() == 0


def test_what_a_person_a_file_or_a_tool_says_is_text_too(open_page: Open) -> None:
    reader = open_page()
    reader.ask("<img src=x onerror='window.hit=1'>", "Fine.")
    expect(reader.page.locator(".bubble")).to_have_text("<img src=x onerror='window.hit=1'>")
    expect(reader.page.locator(".bar h1")).to_have_text("<img src=x onerror='window.hit=1'>")
    assert reader.page.evaluate("window.hit") is None


def test_the_policy_lets_in_nothing_but_this_server(open_page: Open, site: ThreadServer) -> None:
    with site.client() as client:
        page = client.get("/")
    policy = page.headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ):
        assert part in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    reader = open_page()
    refused = reader.page.evaluate(
        """() => new Promise((told) => setTimeout(async () => {
            // In a task of the page's own: what the test's tool runs itself is let off the policy.
            const out = {};
            const script = document.createElement("script");
            try { script.textContent = "window.hit = 1"; document.head.append(script); } catch { out.script = "refused"; }
            try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); out.html = "taken"; } catch { out.html = "refused"; }
            try { await fetch("https://example.org/"); out.fetch = "taken"; } catch { out.fetch = "refused"; }
            try { new Function("window.hit = 2")(); out.code = "taken"; } catch { out.code = "refused"; }
            told({ ...out, hit: window.hit ?? null });
        }))"""
    )
    assert refused["html"] == refused["fetch"] == refused["code"] == "refused"
    assert refused["hit"] is None
    # The browser complains of each of these four, and of nothing else.
    assert all(
        "Content Security Policy" in told or "TrustedHTML" in told or "Refused" in told or "TrustedScript" in told
        for told in reader.problems
    )
    reader.problems.clear()
    reader.foreign.clear()


def test_the_files_come_without_a_key_and_nothing_else_does() -> None:
    with thread_server(keys=keys()) as server, server.client() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert client.get("/page/app.js").status_code == 200
        for path in (
            "/page",
            "/page/",
            "/page/none.js",
            "/page/vendor",
            "/v1/models",
            "/openapi.json",
            "/page/tsconfig.json/",
        ):
            assert client.get(path).status_code in (401, 404), path
        assert client.post("/").status_code == 401
        assert client.get("/page//app.js").status_code == 401
        assert client.get("/page/%61pp.js").status_code == 401
        assert client.get("/page/none.js", headers=bearer("anna")).status_code == 404
        # A client of its own manners may send dots, which httpx would take out.
        for path in ("//", "/page/../page/app.js", "/page/../v1/models", "/page/..%2fapp.js"):
            head = raw(server.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert head.startswith(b"HTTP/1.1 401"), path


def test_files_are_packed_and_asked_for_once(site: ThreadServer) -> None:
    with site.client() as client:
        plain = client.get("/page/app.js", headers={"accept-encoding": "identity"})
        packed = client.get("/page/app.js", headers={"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.text == plain.text
        assert int(packed.headers["content-length"]) < len(plain.content) / 2
        again = client.get("/page/app.js", headers={"if-none-match": plain.headers["etag"]})
        assert again.status_code == 304
        assert not again.content
        assert client.head("/page/app.js").status_code == 200


@pytest.mark.parametrize("name", ["app.js", "style.css", "icon.svg", "i18n/th.js"])
def test_types_are_told_rightly(site: ThreadServer, name: str) -> None:
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    with site.client() as client:
        assert client.get(f"/page/{name}").headers["content-type"] == kinds[name.rpartition(".")[2]]


def test_everything_that_comes_later_comes_from_this_server(open_page: Open) -> None:
    """Colours, formulas and another language are loaded when first needed, with every other host out of reach."""
    reader = open_page(path="")
    asked: list[str] = []
    reader.page.on("request", lambda request: asked.append(request.url))
    reader.page.context.route(lambda url: not url.startswith((reader.server.url, "data:", "blob:")), lambda route: route.abort())
    reader.open()
    reader.ask("Show me.", "Look: $x^2$\n\n```python\nreturn 1  # one\n```")
    expect(reader.last.locator("math")).to_be_visible()
    expect(reader.last.locator(".code code span").first).to_be_visible()
    reader.page.get_by_role("button", name="Settings").click()
    reader.page.get_by_label("Language").select_option("th")
    expect(reader.page.locator("html")).to_have_attribute("lang", "th")
    assert {url.rpartition("/")[2] for url in asked} >= {"maths.js", "highlight.js", "th.js"}
    assert reader.foreign == []
