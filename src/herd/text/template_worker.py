"""The child process that renders one foreign chat template: JSON in on stdin, JSON out on stdout, then it is gone.

Run as a file with `python -I`, never imported by herd; `template` starts it and kills it. It limits itself before it reads the template:
processor time, real time (a kernel timer, which no long operation can put off), address space, and no file may grow. Environment of the
template: jinja2's ImmutableSandboxedEnvironment with what Hugging Face's own renderer gives a template.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a training mask covers; here its body renders as it stands."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the Hugging Face renderer writes it: no HTML escapes, which jinja2's own filter would put in."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    given: Any = environment
    given.filters["tojson"] = _to_json
    given.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


def _set(limit: int, value: int) -> None:
    """Lower a limit, as far as the system knows it: macOS refuses some, where the timer and the parent's watch remain."""
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        return


def _confine(time_limit_s: float, memory_bytes: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, time_limit_s)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + time_limit_s) + 1)
    _set(resource.RLIMIT_AS, memory_bytes)
    _set(resource.RLIMIT_FSIZE, 0)
    _set(resource.RLIMIT_CORE, 0)


def _render(job: dict[str, Any]) -> dict[str, Any]:
    """The rendered text, or what went wrong: its kind, and the words for it."""
    chunks: list[str] = []
    size_bytes = 0
    try:
        for chunk in _environment().from_string(job["source"]).generate(**job["variables"]):
            size_bytes += len(chunk) if chunk.isascii() else len(chunk.encode("utf-8", "surrogatepass"))
            if size_bytes > job["max_output_bytes"]:
                return {"error": "size"}
            chunks.append(chunk)
    except MemoryError:
        chunks.clear()
        return {"error": "memory"}
    except SecurityError as error:
        return {"error": "security", "message": str(error)}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": "template", "message": error.message or ""}
    except Exception as error:  # a template can provoke any exception; each is reported to the parent, which raises FormatError
        return {"error": "template", "message": f"{type(error).__name__}: {error}"}
    return {"text": "".join(chunks)}


def main() -> None:
    """Read the job, render it, write the outcome."""
    job: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    _confine(job["time_limit_s"], job["memory_bytes"])
    outcome = _render(job)
    sys.stdout.buffer.write(json.dumps(outcome).encode())


if __name__ == "__main__":
    main()
