"""Foreign chat templates: rendered as Hugging Face renders them, and confined; whatever a template tries, the answer is a FormatError."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import FormatError
from herd.text import template
from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.template import MAX_SOURCE_BYTES, MAX_TIME_S, render_template

HI = [{"role": "user", "content": "Hi"}]
CHAT = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def refusal(source: str, **options: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        render_template(source, **({"messages": HI} | options))
    assert caught.value.hint
    return caught.value


# What templates may do


def test_a_chat_template_renders_the_conversation() -> None:
    conversation = [Message.system("Be kind."), Message.user("Grüße 🦙"), Message.assistant("Hallo."), Message.user("?")]
    text = render_template(CHAT, messages=[message.to_dict() for message in conversation], variables={"bos_token": "<|begin_of_text|>"})
    assert text == PromptFormat().render(conversation)


def test_without_a_generation_prompt_the_template_is_told_so() -> None:
    assert render_template("{{ add_generation_prompt }}", messages=[], add_generation_prompt=False) == "False"


def test_the_published_template_renders_where_the_shared_data_has_one(shared_data: Path) -> None:
    config = json.loads((shared_data / "reference" / "llama3" / "hf_tokenizer_config.json").read_text(encoding="utf-8"))
    if "chat_template" not in config:
        pytest.skip("the published tokenizer configuration is of the base model, which has no chat template")
    text = render_template(config["chat_template"], messages=HI, variables={"bos_token": config["bos_token"]})
    assert text.startswith(config["bos_token"]) and "Hi" in text


def test_a_template_sees_messages_tools_and_variables() -> None:
    source = "{{ messages[0].content }}|{{ tools[0]['function']['name'] }}|{{ documents is none }}|{{ greeting }}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert render_template(source, messages=HI, tools=tools, variables={"greeting": "Hello"}) == "Hi|f|True|Hello"
    assert render_template("{{ tools is none }}", messages=HI) == "True"


def test_variables_cannot_replace_the_conversation() -> None:
    variables = {"messages": [], "tools": [1], "documents": [2], "add_generation_prompt": False}
    source = "{{ messages[0].content }} {{ tools }} {{ documents }} {{ add_generation_prompt }}"
    assert render_template(source, messages=HI, variables=variables) == "Hi None None True"


def test_tojson_keeps_characters_and_escapes_no_html() -> None:
    v = {"b": "<é & 'x'>", "a": [1, None]}
    assert render_template("{{ v | tojson }}", messages=HI, variables={"v": v}) == json.dumps(v, ensure_ascii=False)
    assert render_template("{{ v | tojson(indent=4) }}", messages=HI, variables={"v": v}) == json.dumps(v, ensure_ascii=False, indent=4)


def test_blocks_leave_no_lines_of_their_own() -> None:
    assert render_template("{% if true %}\n  {% set a = 1 %}\na\n{% endif %}\n", messages=HI) == "a\n"


def test_loops_can_be_left_and_generation_blocks_are_transparent() -> None:
    assert render_template("{% for n in range(9) %}{% if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %}", messages=HI) == "012"
    assert render_template("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c", messages=HI) == "abHic"


def test_a_template_can_ask_for_the_date() -> None:
    before = datetime.now()
    year = render_template("{{ strftime_now('%Y') }}", messages=HI)
    assert year in {str(before.year), str(datetime.now().year)}


def test_a_template_can_refuse_the_conversation_itself() -> None:
    error = refusal("{{ raise_exception('roles must alternate') }}")
    assert error.message == "the chat template refused the conversation: roles must alternate"


def test_lone_surrogates_pass_through() -> None:
    assert render_template("{{ messages[0].content }}", messages=[{"role": "user", "content": "\ud800é"}]) == "\ud800é"


# What they may not


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__base__'] }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self.__init__.__globals__.__builtins__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ '%s' | format(messages.__class__.__name__) }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    ],
)
def test_no_attribute_leads_out_of_the_template(source: str) -> None:
    error = refusal(source)
    assert re.search(r"does what no template may: access to attribute '__\w+__' of '\w+' object is unsafe", error.message)
    assert error.hint == "do not use this template; it may be an attack"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ ('{0.__class__}' | attr('format'))(messages) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    ],
)
def test_an_attribute_of_python_itself_shows_nothing(source: str) -> None:
    assert render_template(source, messages=HI) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages[0].setdefault('a', 1) }}",
        "{% set _ = messages.insert(0, 1) %}",
        "{% set _ = messages.reverse() %}",
    ],
)
def test_what_a_template_is_given_cannot_be_changed(source: str) -> None:
    error = refusal(source)
    assert error.message.startswith("the chat template does what no template may")
    assert error.hint == "do not use this template; it may be an attack"


@pytest.mark.parametrize(
    "source",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'base' %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ __import__('os') }}",
    ],
)
def test_no_file_and_no_module_can_be_reached(source: str) -> None:
    assert refusal(source).message.startswith("the chat template refused the conversation")


def test_the_child_has_no_environment_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    run = subprocess.run

    def spy(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(command=command, **options)
        return run(command, **options)

    monkeypatch.setenv("HERD_SECRET", "x")
    monkeypatch.setattr(subprocess, "run", spy)
    render_template("a", messages=[])
    assert set(seen["env"]) <= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ"}
    assert seen["command"][:2] == [sys.executable, "-I"]
    assert "HERD_SECRET" in os.environ


# Limits


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{% macro f() %}{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}{% endmacro %}{{ f() }}",
    ],
    ids=["loops", "power", "macro"],
)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    started = time.perf_counter()
    error = refusal(source, time_limit_s=0.4)
    assert error.message == "the chat template was stopped after 0.4 seconds"
    assert error.hint and "use herd's own prompt format" in error.hint
    assert time.perf_counter() - started < 30


@pytest.mark.skipif(sys.platform != "linux", reason="needs a system that limits address space")
@pytest.mark.parametrize("source", ["{{ 'x' * 10 ** 10 }}", "{% set a = ['x' * 10 ** 9] %}{{ a * 2 }}"], ids=["text", "list"])
def test_a_template_that_wants_too_much_memory_is_stopped(source: str) -> None:
    assert "wanted more than 536,870,912 bytes of memory" in refusal(source, time_limit_s=20.0).message


@pytest.mark.parametrize(
    "source",
    ["{% for a in range(9000) %}{{ 'é' * 1000 }}{% endfor %}", "{{ 'x' * (5 * 2 ** 20) }}"],
    ids=["bit by bit", "at once"],
)
def test_a_template_that_writes_too_much_is_stopped(source: str) -> None:
    assert refusal(source, time_limit_s=20.0).message == "the chat template wrote more than 4,194,304 bytes"


def test_four_mebibytes_may_be_written() -> None:
    assert len(render_template("{{ 'x' * (4 * 2 ** 20) }}", messages=HI, time_limit_s=20.0)) == 4 * 2**20


def test_a_template_that_calls_itself_for_ever_is_refused() -> None:
    error = refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", time_limit_s=20.0)
    assert "RecursionError" in error.message or "the process of the chat template ended" in error.message


def test_a_source_over_the_limit_is_refused_unread() -> None:
    assert render_template("x" * MAX_SOURCE_BYTES, messages=HI) == "x" * MAX_SOURCE_BYTES
    error = refusal("é" * (MAX_SOURCE_BYTES // 2) + "x")
    assert error.message == "the chat template has 65,537 bytes (limit 65,536)"


@pytest.mark.parametrize("time_limit_s", [0.0, -1.0, MAX_TIME_S + 1, float("nan"), float("inf")])
def test_a_time_limit_out_of_range_is_refused(time_limit_s: float) -> None:
    error = refusal("x", time_limit_s=time_limit_s)
    assert re.fullmatch(r"time_limit_s is \S+; it must be over 0 and at most 60", error.message)
    assert error.hint == "2 is plenty for any template"


# Templates that are wrong


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{% if %}", 1),
        ("a\n{{ }", 2),
        ("{% for a in b %}", 1),
        ("{% endfor %}", 1),
        ("{{ 'unclosed }}", 1),
        ("a\nb\n{% nonsense %}", 3),
        ("{{ a | nofilter }}", 1),
    ],
)
def test_a_syntax_error_is_named_with_its_line(source: str, line: int) -> None:
    error = refusal(source)
    assert error.message.startswith(f"the chat template is not valid Jinja, line {line}: ")
    assert error.hint == "use herd's own prompt format (leave the template out), or mend the template"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].nothing.more }}", "no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ nothing() }}", "'nothing' is undefined"),
    ],
)
def test_an_error_in_a_template_is_told(source: str, message: str) -> None:
    assert message in refusal(source).message


def test_a_conversation_that_json_cannot_say_is_refused() -> None:
    assert refusal("x", variables={"a": {1, 2}}).message.startswith("not JSON")


def test_a_child_that_dies_is_a_format_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dead = tmp_path / "dead.py"
    dead.write_text("import sys; sys.exit('out of order')", encoding="utf-8")
    monkeypatch.setattr(template, "_WORKER", dead)
    assert "ended with status 1 (out of order)" in refusal("x").message


def test_a_child_that_cannot_start_is_a_format_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    assert refusal("x").message.startswith("cannot start a process for the chat template")


def test_a_child_that_hangs_before_its_own_limits_is_stopped_by_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep.py"
    asleep.write_text("import time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(template, "_WORKER", asleep)
    monkeypatch.setattr(template, "_START_LIMIT_S", 0.5)
    assert refusal("x", time_limit_s=0.5).message == "the chat template was stopped after 0.5 seconds"
