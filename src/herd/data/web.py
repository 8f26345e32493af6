"""Pages: WARC archives (Common Crawl's WARC and WET), HTML files, and the text of a page.

Reading and extraction are fastwarc's and resiliparse's. Added here is what the paper asks for besides: formulas keep their TeX, code its
lines, pictures their alternative text, and no marks of Markdown are put in (section 3.1.1 of the Llama 3 paper: they hurt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLTree

from herd.base.errors import FormatError
from herd.data.records import MAX_LINE_BYTES, Record, opened

_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_MANY_TAGS = 20_000
_DEEP = 2000
_TAG = re.compile(r"<(?P<end>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)")
_NO_END = frozenset(
    ("br", "img", "hr", "meta", "link", "input", "source", "area", "base", "col", "wbr", "p", "li", "td", "tr", "th", "option", "dt", "dd")
)
_TEX = ('annotation[encoding="application/x-tex"]', 'annotation[encoding="TeX"]')


def read_warc(path: Path | str) -> Iterator[Record]:
    """Pages of a WARC file as `html` with `url` and `date`; the plain text of a WET file as `text`. Raises FormatError on a damaged file.

    Records over 128 MiB, and responses that are no pages, are passed over.
    """
    kinds = WarcRecordType.response | WarcRecordType.conversion
    with opened(path) as stream:
        seen = 0
        try:
            for record in ArchiveIterator(cast("Any", stream), record_types=kinds, max_content_length=MAX_LINE_BYTES, parse_http=True):
                seen += 1
                page = _page(record)
                if page is not None:
                    yield page
        except (OSError, EOFError, ValueError) as error:
            raise FormatError(f"{path} is damaged after {seen} records: {error}", hint="fetch the file again") from error


def _page(record: Any) -> Record | None:
    about = {"url": record.headers.get("WARC-Target-URI", ""), "date": record.headers.get("WARC-Date", "")}
    if record.record_type == WarcRecordType.conversion:
        return {"text": _body(record).decode("utf-8", "replace"), **about}
    kind = record.http_content_type if record.is_http else None
    if kind not in _PAGE_TYPES:
        return None
    return {"html": _decoded(_body(record), record.http_charset), **about}


def _body(record: Any) -> bytes:
    """A record's content. A file that was cut ends in silence: only the length that the record promises tells."""
    body = record.reader.read()
    if len(body) < record.content_length:
        raise EOFError(f"a record of {record.content_length:,} bytes ends after {len(body):,}")
    return body


def _decoded(body: bytes, charset: str | None) -> str:
    try:
        return bytes_to_str(body, charset or detect_encoding(body) or "utf-8")
    except LookupError:
        return bytes_to_str(body, detect_encoding(body) or "utf-8")


def read_html(path: Path | str) -> Iterator[Record]:
    """One HTML file as one record with `html`. Raises FormatError if it is over 128 MiB."""
    with opened(path) as stream:
        body = stream.read(MAX_LINE_BYTES + 1)
    if len(body) > MAX_LINE_BYTES:
        raise FormatError(f"{path} is over {MAX_LINE_BYTES // 2**20} MiB", hint="a page is far smaller; cut it into several")
    yield {"html": _decoded(body, None), "url": str(path)}


def html_to_text(html: str) -> str:
    """The main text of a page: paragraphs and code keep their lines, formulas become $TeX$; empty for a page that has none.

    A page of very many tags nested without end would take hours, since the time grows with the square of the depth: it has no text either.
    """
    if html.count("<") > _MANY_TAGS and _depth(html) > _DEEP:
        return ""
    tree = HTMLTree.parse(html)
    if "<math" in html or "math/tex" in html:
        _spell_formulas(tree)
    text = extract_plain_text(tree, preserve_formatting=True, main_content=True, alt_texts=True, list_bullets=False)
    return text.encode("utf-8", "replace").decode().strip()


def _depth(html: str) -> int:
    """How deep tags are nested, unclosed ones counted as open to the end, but for those that have no end."""
    depth = deepest = 0
    for match in _TAG.finditer(html):
        if match["end"]:
            depth = max(0, depth - 1)
        elif match["name"].lower() not in _NO_END:
            depth += 1
            deepest = max(deepest, depth)
    return deepest


def _spell_formulas(tree: HTMLTree) -> None:
    """Put in the place of every formula its TeX: MathML's annotation or alttext, MathJax's script."""
    document: Any = tree.document
    for node in document.query_selector_all("math"):
        if node.parent_element is not None and node.parent_element.closest("math") is not None:
            continue  # a formula inside one that has been replaced
        sources = [found for selector in _TEX if (found := node.query_selector(selector)) is not None]
        _replace(tree, node, sources[0].text if sources else node.getattr("alttext") or node.text)
    for node in document.query_selector_all('script[type^="math/tex"]'):
        _replace(tree, node, node.text)


def _replace(tree: HTMLTree, node: Any, tex: Any) -> None:
    node.parent.replace_child(tree.create_text_node(f"${str(tex).strip()}$"), node)
