"""The OpenAPI document: complete, bounded, and true by schemathesis, which sends what it allows and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import FULL, ThreadServer, bearer, keyed_server, open_server  # noqa: F401  # pyright: ignore[reportMissingImports]

BOUNDS = {
    "integer": ("minimum", "exclusiveMinimum"),
    "number": ("minimum", "exclusiveMinimum"),
    "string": ("maxLength", "enum", "const", "format"),
    "array": ("maxItems",),
}


@pytest.fixture
def document(server: ThreadServer) -> dict[str, Any]:
    with server.client() as client:
        return client.get("/openapi.json").json()


def request_schemas(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that a body may hold, by name."""
    names = {name for name in document["components"]["schemas"] if name != "Error"}
    for name in sorted(names):
        yield name, document["components"]["schemas"][name]


def unbounded(schema: dict[str, Any], place: str) -> Iterator[str]:
    """Places without a bound."""
    kind = schema.get("type")
    if kind in BOUNDS and "enum" not in schema and "const" not in schema:
        if not any(word in schema for word in BOUNDS[kind]):
            yield place
        if kind in ("integer", "number") and not any(word in schema for word in ("maximum", "exclusiveMaximum")):
            yield place
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for number, inner in enumerate(schema.get(word, ())):
            yield from unbounded(inner, f"{place}.{word}{number}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from unbounded(schema[word], f"{place}.{word}")


def test_every_field_is_described_and_bounded(document: dict[str, Any]) -> None:
    missing = []
    for name, schema in request_schemas(document):
        for field, inner in schema.get("properties", {}).items():
            if not inner.get("description"):
                missing.append(f"{name}.{field} has no description")
            missing += [f"{place} has no bound" for place in unbounded(inner, f"{name}.{field}")]
    assert not missing


def test_errors_and_keys_are_documented(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert {"400", "401", "403", "404", "413", "429", "500", "503"} <= set(operation["responses"]), (method, path)
            assert "422" not in operation["responses"]
            assert operation["security"] == ([] if path in ("/health", "/ready") else [{"key": []}])


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ["open", "keyed"])
def test_schemathesis(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    """No 5xx, only statuses and bodies that the document tells of; with valid data and with data that is not."""
    served: ThreadServer = request.getfixturevalue("server" if name == "open" else "keyed")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", served.url + "/openapi.json"),
        *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"),
        *("--phases", "examples,coverage,fuzzing" if FULL else "coverage,fuzzing"),
        *("--max-examples", "100" if FULL else "8", "--max-time", "600" if FULL else "15"),
        *("--seed", "1", "--no-color", "--generation-database", "none", "--request-timeout", "300"),
    ]
    headers = bearer("anna") if name == "keyed" else {}
    command += [word for key, value in headers.items() for word in ("--header", f"{key}: {value}")]
    with served.client(headers=headers) as client:  # made at the first question, which the program gives ten seconds, and kept
        client.get("/openapi.json").raise_for_status()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"}, timeout=900
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
