"""`fetch_url`: a page as text, for the model."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from herd.tools.tool import Attachment, Taint, ToolContext, ToolLimits, ToolResult, failure
from herd.tools.web.fetch import Fetched, Fetcher
from herd.tools.web.html import page_text

_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_TEXTUAL = re.compile(r"text/|application/(?:[\w.+-]*\+)?(?:json|xml|javascript|yaml|x-ndjson)\b")
_ATTACHED = {"application/pdf": "document.pdf", "image/png": "picture.png", "image/jpeg": "picture.jpg", "image/gif": "picture.gif"}


class FetchTool:
    """Fetches one public page over http or https and gives its text."""

    name = "fetch_url"
    description = "Fetches a public web page or text file by its URL and returns its text."
    # What is asked for is itself a message to whoever runs the other side.
    taint = Taint(reads_untrusted=True, acts_outside=True)
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "The whole URL, with http:// or https://."},
            "links": {"type": "boolean", "description": "Also list the page's links."},
        },
        "required": ["url"],
        "additionalProperties": False,
    }

    def __init__(self, fetcher: Fetcher | None = None) -> None:
        self._fetcher = fetcher or Fetcher()
        self.limits = ToolLimits(timeout_s=self._fetcher.limits.timeout_s + 5)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Fetch `url`."""
        got = await self._fetcher.get(arguments["url"])
        if got.status >= 400:
            return failure("http_status", f"the page answered with status {got.status}", data={"status": got.status, "url": got.url})
        kind = got.content_type.partition(";")[0].strip().lower()
        if kind in _ATTACHED:
            file = Attachment(name=_ATTACHED[kind], mime_type=kind, data=got.body)
            return ToolResult(
                text=f"fetched {got.url}: {kind}, {len(got.body)} bytes, attached", attachments=(file,), truncated=got.truncated
            )
        if kind and not _TEXTUAL.match(kind):
            return failure("not_text", f"{got.url} is {kind[:60]!r}, which has no text", data={"url": got.url, "content_type": kind})
        return _as_text(got, kind, with_links=arguments.get("links", False))


def _as_text(got: Fetched, kind: str, *, with_links: bool) -> ToolResult:
    text = _decoded(got)
    title, links = "", ()
    if kind in ("", "text/html", "application/xhtml+xml") and "<" in text[:2000]:
        page = page_text(text, got.url)
        text, title, links = page.text, page.title, page.links
    head = f"{got.url}\n{title}\n\n" if title else f"{got.url}\n\n"
    tail = "\n\nLinks:\n" + "\n".join(f"- {label}: {url}" for label, url in links) if with_links and links else ""
    cut = "\n[the page is longer than what is fetched]" if got.truncated else ""
    data = {"url": got.url, "title": title, "status": got.status, "links": [{"text": label, "url": url} for label, url in links]}
    return ToolResult(text=head + text + cut + tail, data=data, truncated=got.truncated)


def _decoded(got: Fetched) -> str:
    """The body as text: by what the header says, else what the page says, else UTF-8."""
    for said in (got.content_type, got.body[:2048].decode("latin-1")):
        found = _CHARSET.search(said)
        if found is None:
            continue
        try:
            info = codecs.lookup(found[1])
            # Some of Python's codecs are no character sets, and one of them unpacks.
            if info._is_text_encoding:  # pyright: ignore[reportAttributeAccessIssue] - the flag that bytes.decode itself goes by
                return got.body.decode(found[1], "replace")
        except (LookupError, ValueError):
            continue
    return got.body.decode("utf-8-sig", "replace")
