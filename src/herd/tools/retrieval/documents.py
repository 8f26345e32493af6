"""PDF (pypdf) and Word (python-docx) as text. Runs as a program of its own, under limits that it sets before it reads a byte.

What comes in on stdin is hostile until read: a zip is unpacked once into nothing, to count what comes out, before a library may touch it.
"""

from __future__ import annotations

import io
import resource
import sys
import zipfile
from collections.abc import Callable

_PIECE = 2**16


class _RefusedError(Exception):
    """Why a file is not read."""


def read_pdf(data: bytes, max_chars: int) -> str:
    """The text of every page, a form feed between two."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise _RefusedError("it is locked with a password")
    pages: list[str] = []
    size = 0
    for page in reader.pages:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > max_chars:
            raise _RefusedError(f"it has over {max_chars:,} characters")
    if not size:
        raise _RefusedError("it holds no text, only pictures perhaps")
    return "\f".join(pages)


def read_docx(data: bytes, max_chars: int) -> str:
    """Paragraphs, and tables row by row, in their order."""
    from docx import Document
    from docx.table import Table

    lines: list[str] = []
    for block in Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            lines.extend(" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows)
        else:
            lines.append(block.text)
    text = "\n".join(lines)
    if len(text) > max_chars:
        raise _RefusedError(f"it has over {max_chars:,} characters")
    return text


def check_zip(data: bytes, max_bytes: int) -> None:
    """Count what a zip holds by unpacking it, whatever it claims."""
    left = max_bytes
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                while piece := member.read(_PIECE):
                    left -= len(piece)
                    if left < 0:
                        raise _RefusedError(f"unpacked it has over {max_bytes:,} bytes")


def main() -> None:
    """KIND MEMORY_BYTES UNPACKED_BYTES MAX_CHARS SECONDS; the file on stdin, its text on stdout."""
    kind = sys.argv[1]
    memory, unpacked, max_chars, seconds = map(int, sys.argv[2:6])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    readers: dict[str, Callable[[bytes, int], str]] = {"pdf": read_pdf, "docx": read_docx}
    data = sys.stdin.buffer.read()
    try:
        if kind == "docx":
            check_zip(data, unpacked)
        text = readers[kind](data, max_chars)
    except _RefusedError as error:
        sys.exit(f"refused: {error}")
    except zipfile.BadZipFile:
        sys.exit("refused: it is no Word file")
    except Exception as error:
        sys.exit(f"failed: {type(error).__name__}")
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
