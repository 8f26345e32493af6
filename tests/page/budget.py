"""What the page weighs: our lines, and everything's bytes as they go over the wire. `make check` prints it and fails over the budget.

Also checks the vendored libraries against their checksums, that every language has the same words, and, where TypeScript's compiler is
installed, the types. `python tests/page/budget.py --vendor FOLDER` compares with packages unpacked from npm.
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

STATIC = Path(__file__).resolve().parents[2] / "src" / "herd" / "stack" / "static"
VENDOR = STATIC / "vendor"
MAX_LINES = 4000
MAX_BYTES = 150_000
LATER = ("maths.js", "highlight.js")
"""Fetched when an answer first needs them."""
OURS = (".js", ".css", ".html", ".svg")


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


def type_errors() -> list[str] | None:
    """What TypeScript says of the JSDoc types; None where its compiler is not installed."""
    compiler = shutil.which("tsc")
    if compiler is None:
        return None
    done = subprocess.run([compiler, "-p", str(STATIC / "tsconfig.json")], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.splitlines()


def main() -> int:
    """Print, and 1 if something is wrong."""
    found = weights()
    lines, packed = sum(one.lines for one in found), sum(one.packed_bytes for one in found)
    vendored = sum(one.packed_bytes for one in found if VENDOR in one.path.parents)
    first = [one for one in found if one.path.name not in LATER and (one.path.parent.name != "i18n" or one.path.name == "en.js")]
    print(f"page: {lines:,} lines of {MAX_LINES:,}, {packed:,} bytes packed of {MAX_BYTES:,} ({vendored:,} of them vendored)")
    print(f"page: {sum(one.packed_bytes for one in first):,} bytes before the first formula, code or other language")
    wrong = wrong_checksums() + wrong_words() + [f"no one asks for the text {name}" for name in unused_words()]
    types = type_errors()
    if types is None:
        print("page: types not checked, since tsc is not installed (npm install --global typescript)")
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
