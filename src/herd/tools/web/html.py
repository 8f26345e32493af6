"""A web page as text that a model can read: what a reader sees, a line for each block, and its links. Parsed by Lexbor (selectolax)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from selectolax.lexbor import LexborHTMLParser

_UNSEEN = "script, style, noscript, template, iframe, object, embed, svg, canvas, head, nav[aria-hidden=true], [hidden]"
_BLOCKS = (
    "p, div, section, article, main, header, footer, aside, nav, h1, h2, h3, h4, h5, h6, ul, ol, li, dl, dt, dd, table, tr, blockquote, "
    "pre, figure, figcaption, form, fieldset, address, hr, br, details, summary, option"
)
_BREAK = "\ue000"
"""Stands for a line's end while white space is folded; a page's own ones are taken out first."""
_MAX_LINKS = 50
_SPACE = re.compile(r"[ \t\r\n\f\u00a0]+")
_BREAKS = re.compile(rf" ?(?:{_BREAK} ?)+")


@dataclass(frozen=True, kw_only=True, slots=True)
class PageText:
    """A page's title, text and links."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...]


def page_text(html: str, base_url: str) -> PageText:
    """What a page says."""
    tree = LexborHTMLParser(html.replace(_BREAK, ""))
    title_node = tree.css_first("title")
    title = _SPACE.sub(" ", title_node.text()).strip() if title_node is not None else ""
    for node in tree.css(_UNSEEN):
        node.decompose()
    body = tree.body
    if body is None:
        return PageText(title=title, text="", links=())
    links = _links(tree, base_url)
    for node in body.css(_BLOCKS):
        node.insert_before(_BREAK)
        node.insert_after(_BREAK)
    for node in body.css("td, th"):
        node.insert_after(" | ")
    folded = _SPACE.sub(" ", body.text(deep=True))
    return PageText(title=title, text=_BREAKS.sub("\n", folded).strip(), links=links)


def _links(tree: LexborHTMLParser, base_url: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for node in tree.css("a[href]"):
        try:
            url = urljoin(base_url, node.attributes.get("href") or "").partition("#")[0]
        except ValueError:
            continue
        text = _SPACE.sub(" ", node.text(deep=True)).strip()
        if url.startswith(("http://", "https://")) and text and url not in found:
            found[url] = text[:120]
            if len(found) == _MAX_LINKS:
                break
    return tuple((text, url) for url, text in found.items())
