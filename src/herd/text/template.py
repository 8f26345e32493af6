"""Foreign chat templates (Hugging Face style Jinja), which are code of strangers: rendered in a sandbox, in a child process, within limits.

herd's own prompts never come this way (`prompt` makes them). The sandbox refuses attributes that lead out of the template and mutation of
what it is given; the process bounds what no sandbox bounds: time, memory, size. The child is `template_worker`, alone, without our
environment variables.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from herd.base.errors import FormatError
from herd.text.tool_calls import json_text

MAX_SOURCE_BYTES = 64 * 2**10
MAX_OUTPUT_BYTES = 4 * 2**20
MAX_MEMORY_BYTES = 512 * 2**20
MAX_TIME_S = 60.0
_START_LIMIT_S = 30.0
_WORKER = Path(__file__).with_name("template_worker.py")
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")

_HINT_OTHER = "use herd's own prompt format (leave the template out), or mend the template"
_HINT_LIMIT = "a chat template takes milliseconds: this one is broken or hostile, use herd's own prompt format"


def render_template(
    source: str,
    *,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    time_limit_s: float = 2.0,
) -> str:
    """Render a chat template over a conversation.

    Args:
        source: Jinja text of at most 64 KiB, as `chat_template` in a Hugging Face tokenizer_config.json.
        messages: the conversation, in whatever shape the template reads; made of what JSON can say.
        tools: tool definitions; the template sees none if there are none.
        add_generation_prompt: what the template sees under this name.
        variables: more names for the template (`bos_token`, `date_string`...); they cannot replace the four above.
        time_limit_s: seconds of real time for the rendering; starting the process is not counted.

    Raises:
        FormatError: a limit was passed, or the template is wrong, leaves the sandbox, or refuses the conversation itself.
    """
    size_bytes = len(source.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_SOURCE_BYTES:
        raise FormatError(f"the chat template has {size_bytes:,} bytes (limit {MAX_SOURCE_BYTES:,})", hint=_HINT_OTHER)
    if not 0 < time_limit_s <= MAX_TIME_S:
        raise FormatError(
            f"time_limit_s is {time_limit_s:g}; it must be over 0 and at most {MAX_TIME_S:g}", hint="2 is plenty for any template"
        )
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
    job = json_text(
        {
            "source": source,
            "variables": {**(variables or {}), **given},
            "time_limit_s": time_limit_s,
            "memory_bytes": MAX_MEMORY_BYTES,
            "max_output_bytes": MAX_OUTPUT_BYTES,
        }
    )
    return _outcome(_run(job, time_limit_s), time_limit_s)


def _run(job: str, time_limit_s: float) -> subprocess.CompletedProcess[bytes]:
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    try:
        return subprocess.run(
            [sys.executable, "-I", "-B", str(_WORKER)],
            input=job.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=time_limit_s + _START_LIMIT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _too_slow(time_limit_s) from error
    except OSError as error:
        raise FormatError(f"cannot start a process for the chat template: {error.strerror}", hint="free memory or processes") from error


def _too_slow(time_limit_s: float) -> FormatError:
    return FormatError(f"the chat template was stopped after {time_limit_s:g} seconds", hint=_HINT_LIMIT)


def _outcome(process: subprocess.CompletedProcess[bytes], time_limit_s: float) -> str:
    if process.returncode in (-signal.SIGALRM, -signal.SIGXCPU):
        raise _too_slow(time_limit_s)
    try:
        outcome: Any = json.loads(process.stdout)
    except ValueError as error:
        last = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise FormatError(
            f"the process of the chat template ended with status {process.returncode} ({last[:200] or 'no message'})", hint=_HINT_LIMIT
        ) from error
    if "text" not in outcome:
        _refuse(outcome["error"], str(outcome.get("message", ""))[:500])
    return outcome["text"]


def _refuse(kind: str, message: str) -> NoReturn:
    if kind == "size":
        raise FormatError(f"the chat template wrote more than {MAX_OUTPUT_BYTES:,} bytes", hint=_HINT_LIMIT)
    if kind == "memory":
        raise FormatError(f"the chat template wanted more than {MAX_MEMORY_BYTES:,} bytes of memory", hint=_HINT_LIMIT)
    if kind == "security":
        raise FormatError(f"the chat template does what no template may: {message}", hint="do not use this template; it may be an attack")
    if kind == "syntax":
        raise FormatError(f"the chat template is not valid Jinja, {message}", hint=_HINT_OTHER)
    raise FormatError(f"the chat template refused the conversation: {message}", hint=_HINT_OTHER)
