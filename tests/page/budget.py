"""What the page weighs: our lines, and everything's bytes as they go over the wire. `make check` prints it and fails over the budget.

Also checks the vendored libraries against their checksums, that every language has the same words, and the types, by TypeScript's
compiler: the one on the PATH, or one that npm fetches once into the environment. Where neither is to be had, it says so.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATIC = Path(__file__).resolve().parents[2] / "src" / "herd" / "stack" / "static"
VENDOR = STATIC / "vendor"
MAX_LINES = 4000
MAX_BYTES = 150_000
LATER = ("maths.js", "highlight.js")
"""Fetched when an answer first needs them."""
OURS = (".js", ".css", ".html", ".svg")
TYPESCRIPT = "7.0.2"
FETCHED = Path(sys.prefix) / "share" / f"typescript-{TYPESCRIPT}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One file: its lines where it is ours, and its size packed by gzip, which is how the server sends it."""

    path: Path
    lines: int
    packed_bytes: int


def weights() -> list[Weight]:
    """Every file that a browser may fetch; licences and the lists of them are for readers, and no page asks for them."""
    found: list[Weight] = []
    for path in sorted(STATIC.rglob("*")):
        if path.suffix not in OURS:
            continue
        data = path.read_bytes()
        lines = 0 if VENDOR in path.parents else data.count(b"\n")
        found.append(Weight(path=path, lines=lines, packed_bytes=len(gzip.compress(data, 9, mtime=0))))
    return found


def wrong_checksums() -> list[str]:
    """Vendored files that are not what their list says, and files that no list names."""
    listed = json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8"))
    wrong = [
        f"{row['file']} differs from {row['package']} {row['version']}" for row in listed if digest(VENDOR / row["file"]) != row["sha256"]
    ]
    named = {row["file"] for row in listed}
    return wrong + [f"{path.name} is in no list" for path in sorted(VENDOR.glob("*.js")) if path.name not in named]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words_of(path: Path) -> dict[str, str]:
    """The texts of a language, each with its name."""
    pairs = re.findall(r'\b(\w+): "((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))
    return dict(pairs)


def wrong_words() -> list[str]:
    """Texts that a language lacks or has too many, and {values} that differ from English."""
    english = words_of(STATIC / "i18n" / "en.js")
    wrong: list[str] = []
    for path in sorted((STATIC / "i18n").glob("*.js")):
        words = words_of(path)
        wrong += [f"{path.name} lacks {name}" for name in english.keys() - words.keys()]
        wrong += [f"{path.name} has {name}, English has not" for name in words.keys() - english.keys()]
        for name in english.keys() & words.keys():
            if set(re.findall(r"\{\w+\}", words[name])) != set(re.findall(r"\{\w+\}", english[name])):
                wrong.append(f"{path.name}: {name} has other values than English")
    return wrong


def unused_words() -> list[str]:
    """English texts that no file of the page asks for."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.js")))
    asked = set(re.findall(r'"(\w+)"', code))
    return [name for name in words_of(STATIC / "i18n" / "en.js") if name not in asked and not name.startswith(("hint_", "theme_", "fit_"))]


def type_errors(*, fetch: bool = False) -> list[str] | None:
    """What TypeScript says of the JSDoc types; None where its compiler is not there and could not be fetched."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    project = ["-p", str(STATIC / "tsconfig.json")]
    compiler = shutil.which("tsc")
    if compiler is not None:
        done = subprocess.run([compiler, *project], **options)
    else:
        program = FETCHED / "node_modules" / "typescript" / "bin" / "tsc"
        if not program.is_file() and not (fetch and _fetched(options)):
            return None
        done = _node("node", str(program), *project, **options)
        if done is None:
            return None
    told = done.stdout.splitlines()
    return told or ([] if done.returncode == 0 else [f"tsc failed: {done.stderr.strip()[:500]}"])


def _fetched(options: dict[str, Any]) -> bool:
    """Let npm fetch the compiler, as pyright's package lets it fetch pyright; npm holds it to the registry's checksum."""
    FETCHED.mkdir(parents=True, exist_ok=True)
    quiet = ("--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000")
    command = ("install", "--prefix", str(FETCHED), *quiet, f"typescript@{TYPESCRIPT}")
    done = _node("npm", *command, **options)
    return done is not None and done.returncode == 0


def _node(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str] | None:
    """Run node or npm: those that pyright's package uses, which are the PATH's, or its own. None where there is none."""
    try:
        from pyright import node

        return node.run(program, *arguments, **options)  # pyright: ignore[reportArgumentType, reportReturnType]
    except Exception as error:  # whatever keeps Node.js from being had here, the types were not checked, and the reader is told
        print(f"page: {program} could not be run: {error}"[:300], file=sys.stderr)
        return None


def main() -> int:
    """Print, and 1 if something is wrong."""
    found = weights()
    lines, packed = sum(one.lines for one in found), sum(one.packed_bytes for one in found)
    vendored = sum(one.packed_bytes for one in found if VENDOR in one.path.parents)
    first = [one for one in found if one.path.name not in LATER and (one.path.parent.name != "i18n" or one.path.name == "en.js")]
    print(f"page: {lines:,} lines of {MAX_LINES:,}, {packed:,} bytes packed of {MAX_BYTES:,} ({vendored:,} of them vendored)")
    print(f"page: {sum(one.packed_bytes for one in first):,} bytes before the first formula, code or other language")
    wrong = wrong_checksums() + wrong_words() + [f"no one asks for the text {name}" for name in unused_words()]
    types = type_errors(fetch=True)
    if types is None:
        print(f"page: types NOT checked: no tsc on the PATH, and npm could not fetch typescript {TYPESCRIPT}")
    else:
        print("page: types checked")
    wrong += types or []
    if lines > MAX_LINES:
        wrong.append(f"{lines:,} lines are over the budget of {MAX_LINES:,}")
    if packed > MAX_BYTES:
        wrong.append(f"{packed:,} bytes are over the budget of {MAX_BYTES:,}")
    for line in wrong:
        print("page:", line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
