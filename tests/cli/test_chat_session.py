"""The conversation behind `herd chat`, with a screen that remembers: every command, interrupts that keep, errors that lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herd.cli.repl import COMMANDS, HELP, SETTINGS, Session
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.text.messages import Message
from herd.text.prompt import PromptFormat

GREEDY = SamplingParams(temperature=0.0, max_tokens=50)
Open = Callable[..., Session]


class Screen:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.remarks: list[str] = []

    def answer(self, text: str) -> None:
        self.answers.append(text)

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def last(self) -> str:
        return self.remarks[-1]


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def talk(says: Callable[..., LLM], screen: Screen) -> Open:
    """`talk("Hi.", "Bye.")` opens a session with a model that answers so."""

    def open_session(*answers: str, fails: dict[int, BaseException] | None = None, context: int = 4096, **options: Any) -> Session:
        return Session(says(*answers, fails=fails, context=context), GREEDY, screen, **options)

    return open_session


def tokens(session: Session, messages: list[Message]) -> int:
    return len(PromptFormat().encode(session.llm.tokenizer, messages, generation_prompt=False))


def said(session: Session) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in session.messages]


def test_a_message_is_answered_and_both_are_kept(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", "Well.")
    session.handle("Hello!")
    session.handle("How are you?")
    assert said(session) == [("user", "Hello!"), ("assistant", "Hi."), ("user", "How are you?"), ("assistant", "Well.")]
    assert "".join(screen.answers) == "Hi.\nWell.\n" and not session.done


def test_every_answer_is_followed_by_one_line_of_statistics(talk: Open, screen: Screen) -> None:
    session = talk("Hi.")
    session.handle("Hello!")
    written = len(session.llm.tokenizer.encode("Hi.")) + 1
    used = tokens(session, session.messages)
    (line,) = screen.remarks
    assert line.startswith(f"[{written} tokens, ") and line.endswith(f"context {used:,} of 4,096]")
    assert " tokens/s, first after " in line


def test_the_model_sees_the_whole_conversation(talk: Open) -> None:
    session = talk("Hi.", "Well.", system="Be short.")
    prompts: list[Any] = []
    stream = session.llm.stream
    session.llm.stream = lambda messages, params: (prompts.append(list(messages)), stream(messages, params))[1]  # type: ignore[method-assign, assignment]
    session.handle("Hello!")
    session.handle("Again")
    assert prompts[1] == [Message.system("Be short."), Message.user("Hello!"), Message.assistant("Hi."), Message.user("Again")]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_nothing_typed_is_nothing_asked(talk: Open, screen: Screen, text: str) -> None:
    session = talk("Hi.")
    session.handle(text)
    assert session.messages == [] and screen.answers == screen.remarks == []


@pytest.mark.parametrize("text", ["/etc/hosts is a file", "/", "//", "/1", "a /help"])
def test_what_only_looks_like_a_command_is_a_message(talk: Open, text: str) -> None:
    session = talk("Hi.")
    session.handle(text)
    assert said(session) == [("user", text), ("assistant", "Hi.")]


def test_help_lists_every_command(talk: Open, screen: Screen) -> None:
    talk("Hi.").handle("/help")
    assert screen.remarks == [HELP] and all(command in HELP for command in COMMANDS) and "Ctrl-C" in HELP


@pytest.mark.parametrize(
    ("typed", "meant"), [("/hlep", "/help"), ("/Retryy", "/retry"), ("/saave x.json", "/save"), ("/undoo", "/undo"), ("/stat", "/stats")]
)
def test_an_unknown_command_suggests_the_nearest_and_never_ends_the_chat(talk: Open, screen: Screen, typed: str, meant: str) -> None:
    session = talk("Hi.")
    session.handle(typed)
    assert screen.remarks == [f"error: unknown command {typed.split()[0].lower()}", f"hint: did you mean {meant!r}?"]
    assert not session.done and session.messages == []
    session.handle("Hello!")
    assert len(session.messages) == 2


def test_a_command_like_no_other_points_to_the_help(talk: Open, screen: Screen) -> None:
    talk("Hi.").handle("/zzzzzz")
    assert screen.last() == "hint: /help lists the commands"


@pytest.mark.parametrize("typed", ["/exit", "/quit", "/bye", "/EXIT", "  /exit  "])
def test_exit_and_its_synonyms_end_the_chat(talk: Open, typed: str) -> None:
    session = talk("Hi.")
    session.handle(typed)
    assert session.done


def test_system_sets_shows_and_removes_the_instructions(talk: Open, screen: Screen) -> None:
    session = talk("Hi.")
    session.handle("/system Answer like a  llama.")
    assert session.system == "Answer like a  llama." and screen.last() == "system: Answer like a  llama."
    session.handle("/system")
    assert session.system is None and screen.last() == "no system message"


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("temperature 1.5", "temperature", 1.5),
        ("top_p 0.5", "top_p", 0.5),
        ("top_k 3", "top_k", 3),
        ("min_p 0.1", "min_p", 0.1),
        ("max_tokens 7", "max_tokens", 7),
        ("max_tokens none", "max_tokens", None),
        ("seed 5", "seed", 5),
        ("seed off", "seed", None),
        ("stop User:", "stop", ("User:",)),
        ("stop \\n\\n", "stop", ("\n\n",)),
        ("stop", "stop", ()),
    ],
)
def test_set_changes_one_setting_and_says_so(talk: Open, screen: Screen, typed: str, name: str, value: Any) -> None:
    session = talk("Hi.")
    session.handle(f"/set {typed}")
    assert getattr(session.params, name) == value and screen.remarks == [f"{name} = {value}"]


def test_a_setting_is_in_force_for_the_next_answer(talk: Open, screen: Screen) -> None:
    session = talk("abcdef")
    session.handle("/set max_tokens 2")
    session.handle("x")
    assert said(session)[-1] == ("assistant", "ab")
    assert screen.last().endswith("; cut at max_tokens 2 (/set max_tokens N)]")


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        ("temprature 1", "unknown setting 'temprature'", "did you mean 'temperature'?"),
        ("", "unknown setting ''", "settings: " + ", ".join(SETTINGS)),
        ("temperature", "temperature is '', it must be a number", "/set temperature 0.7"),
        ("temperature warm", "temperature is 'warm', it must be a number", "/set temperature 0.7"),
        ("top_k 1.5", "top_k is '1.5', it must be a whole number", "/set top_k 1"),
        ("temperature -1", "temperature is -1.0, it must be 0 (greedy) to 100", "range"),
        ("temperature nan", "temperature is nan", "range"),
        ("max_tokens 0", "max_tokens is 0", "range"),
        ("temperature none", "temperature is 'none'", "/set temperature"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_nothing_changes(talk: Open, screen: Screen, typed: str, error: str, hint: str) -> None:
    session = talk("Hi.")
    session.handle(f"/set {typed}")
    assert screen.remarks[0].startswith(f"error: {error}") and hint in screen.remarks[1]
    assert session.params == GREEDY


def test_show_tells_model_instructions_settings_and_the_context_used(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", system="Be short.")
    session.handle("Hello!")
    screen.remarks.clear()
    session.handle("/show")
    text = "\n".join(screen.remarks)
    assert "model: model, " in text and "context 4,096 tokens" in text and "system: Be short." in text
    assert all(f"\n{name}: {getattr(session.params, name)}" in text for name in SETTINGS)
    used = tokens(session, [Message.system("Be short."), *session.messages])
    assert screen.last() == f"messages: 2; context: {used:,} of 4,096 tokens"


def test_the_context_used_follows_undo_and_clear(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", "Well.")
    session.handle("Hello!")
    after_one = tokens(session, session.messages)
    session.handle("A much longer message than the first one")
    session.handle("/undo")
    session.handle("/show")
    assert f"context: {after_one:,} of" in screen.last()
    session.handle("/clear")
    session.handle("/show")
    assert "messages: 0; context: 0 of" in screen.last()


def test_stats_add_up_all_answers(talk: Open, screen: Screen) -> None:
    session = talk("abc", "de")
    session.handle("/stats")
    assert screen.remarks[0].startswith("answers: 0; tokens read: 0") and "no speed yet" in screen.remarks[1]
    session.handle("x")
    session.handle("y")
    screen.remarks.clear()
    session.handle("/stats")
    assert screen.remarks[0].startswith("answers: 2; tokens read: ") and screen.remarks[1].startswith("tokens written: 7 in ")


def test_retry_answers_the_last_message_again(talk: Open, screen: Screen) -> None:
    session = talk("One.", "Two.")
    session.handle("Hello!")
    session.handle("/retry")
    assert said(session) == [("user", "Hello!"), ("assistant", "Two.")]
    assert "".join(screen.answers) == "One.\nTwo.\n"


def test_undo_takes_back_the_last_message_and_its_answer(talk: Open) -> None:
    session = talk("One.", "Two.", "Three.")
    session.handle("a")
    session.handle("b")
    session.handle("/undo")
    assert said(session) == [("user", "a"), ("assistant", "One.")]
    session.handle("c")
    assert said(session)[2:] == [("user", "c"), ("assistant", "Three.")]


@pytest.mark.parametrize("command", ["/retry", "/undo"])
def test_there_is_nothing_to_take_back_at_the_beginning(talk: Open, screen: Screen, command: str) -> None:
    session = talk("Hi.")
    session.handle(command)
    assert screen.remarks[0].startswith("error: there is no") and screen.remarks[1] == "hint: say something first"
    assert session.messages == []


def test_clear_begins_anew_and_keeps_instructions_and_settings(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", system="Be short.")
    session.handle("/set top_k 2")
    session.handle("Hello!")
    session.handle("/clear")
    assert session.messages == [] and screen.last() == "cleared"
    assert session.system == "Be short." and session.params.top_k == 2


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(talk: Open, screen: Screen) -> None:
    session = talk("xyz", "Next.", fails={2: KeyboardInterrupt()})
    session.handle("Hello!")
    assert said(session) == [("user", "Hello!"), ("assistant", "xy")] and session.stopped
    assert "".join(screen.answers) == "xy\n" and "what was said is kept" in screen.last()
    session.llm.model.calls = 4
    session.handle("Go on")
    assert said(session)[2:] == [("user", "Go on"), ("assistant", "Next.")] and not session.stopped


def test_ctrl_c_before_the_first_word_keeps_the_message_to_be_retried(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", fails={0: KeyboardInterrupt()})
    session.handle("Hello!")
    assert said(session) == [("user", "Hello!")] and "before anything was said" in screen.last()
    session.handle("/retry")
    assert said(session) == [("user", "Hello!"), ("assistant", "Hi.")]


def test_ctrl_c_in_a_retry_before_the_first_word_keeps_the_answer_that_was_there(talk: Open) -> None:
    session = talk("ab", "cd", fails={3: KeyboardInterrupt()})
    session.handle("Hello!")
    session.handle("/retry")
    assert said(session) == [("user", "Hello!"), ("assistant", "ab")]


def test_an_interrupt_ends_the_computation(talk: Open, screen: Screen) -> None:
    session = talk("abcdef")

    class Impatient(Screen):
        def answer(self, text: str) -> None:
            if text == "b":
                raise KeyboardInterrupt

    session.screen = Impatient()
    session.handle("x")
    assert session.llm.model.calls == 2 and session.messages[-1].text == "ab"


def test_an_error_in_the_middle_loses_only_that_exchange(talk: Open, screen: Screen) -> None:
    failure = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    session = talk("abc", "def", "ghi", fails={5: failure})
    session.handle("first")
    session.handle("second")
    assert screen.remarks[-2].startswith("error: out of memory") and screen.remarks[-1].startswith("hint: ")
    assert said(session) == [("user", "first"), ("assistant", "abc")] and not session.done
    session.llm.model.calls = 8
    session.handle("third")
    assert said(session)[2:] == [("user", "third"), ("assistant", "ghi")]


def test_an_error_in_a_retry_keeps_the_answer_that_was_there(talk: Open) -> None:
    session = talk("ab", "cd", fails={4: MemoryError()})
    session.handle("Hello!")
    session.handle("/retry")
    assert said(session) == [("user", "Hello!"), ("assistant", "ab")]


def test_a_bug_is_not_hidden(talk: Open) -> None:
    session = talk("abc", fails={1: ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        session.handle("x")


def test_a_full_context_is_told_with_the_ways_out_and_nothing_is_cut(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", context=64)
    session.handle("Hello!")
    before = said(session)
    session.handle("grazes " * 40)
    assert "the model's context is 64" in screen.remarks[-2]
    assert screen.last() == "hint: /undo takes the last exchange back, /clear begins anew; nothing was cut"
    assert said(session) == before


def test_a_first_message_over_the_context_has_nothing_to_undo(talk: Open, screen: Screen) -> None:
    session = talk("Hi.", context=64)
    session.handle("grazes " * 40)
    assert "/undo" not in screen.last() and "shorten the prompt" in screen.last() and session.messages == []


def test_an_answer_that_fills_the_context_says_so(talk: Open, screen: Screen) -> None:
    session = talk("x" * 100, context=64)
    session.handle("Hi")
    assert screen.last().endswith("context 64 of 64; cut: the context is full]")


def test_save_and_load_bring_back_conversation_and_settings(talk: Open, screen: Screen, tmp_path: Path) -> None:
    session = talk("สวัสดี.", system="Be short.")
    for line in ("/set temperature 0.5", "/set seed 3", "/set stop END", "Hello!\nsecond line", f"/save {tmp_path / 'talk.json'}"):
        session.handle(line)
    assert screen.last() == f"saved 2 messages to {tmp_path / 'talk.json'}"
    again = talk("More.")
    again.handle(f"/load {tmp_path / 'talk.json'}")
    assert screen.last() == f"loaded 2 messages from {tmp_path / 'talk.json'}"
    assert (again.messages, again.system, again.params) == (session.messages, session.system, session.params)
    again.handle("/show")
    assert f"context: {tokens(session, [Message.system('Be short.'), *session.messages]):,} of" in screen.last()
    again.handle("And now?")
    assert said(again)[2:] == [("user", "And now?"), ("assistant", "More.")]


def test_a_saved_conversation_is_json_in_openais_shape(talk: Open, tmp_path: Path) -> None:
    session = talk("ลา.", system="Be short.")
    session.handle("Hello!")
    session.handle(f"/save {tmp_path / 'talk.json'}")
    text = (tmp_path / "talk.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert data["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "ลา."},
    ]
    assert set(data["settings"]) == set(SETTINGS) and data["model"] == "model" and "ลา" in text


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("", "/save needs a file name"),
        ("file/talk.json", "cannot write below"),
        ("folder", "cannot write folder"),
        ("~no-such-person/talk.json", "there is no home folder for ~no-such-person/talk.json"),
        ("a\0b", "a path holds a null character"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_and_the_chat_goes_on(
    talk: Open, screen: Screen, tmp_path: Path, argument: str, error: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    session = talk("Hi.")
    session.handle(f"/save {argument}")
    assert error in screen.remarks[0] and screen.remarks[0].startswith("error: ") and screen.remarks[1].startswith("hint: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    session.handle("Hello!")
    assert len(session.messages) == 2


def test_tilde_means_home_when_saving_and_loading(talk: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    session = talk("Hi.")
    session.handle("Hello!")
    session.handle("/save ~/talk.json")
    again = talk("Hi.")
    again.handle("/load ~/talk.json")
    assert (tmp_path / "talk.json").is_file() and again.messages == session.messages


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "cannot read"),
        ("not JSON", "is not JSON"),
        ("[]", "holds no list of messages"),
        ("{}", "holds no list of messages"),
        ('{"messages": [7]}', "holds no list of messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "unknown role 'robot'"),
        ('{"messages": [{"role": "user"}]}', "message content is NoneType"),
        ('{"messages": [], "settings": 7}', "the setting 'settings' is 7"),
        ('{"messages": [], "settings": {"colour": 1}}', "the setting 'colour' is 1"),
        ('{"messages": [], "settings": {"temperature": "hot"}}', "the setting 'temperature' is 'hot'"),
        ('{"messages": [], "settings": {"temperature": true}}', "the setting 'temperature' is True"),
        ('{"messages": [], "settings": {"top_k": 1.5}}', "the setting 'top_k' is 1.5"),
        ('{"messages": [], "settings": {"temperature": NaN}}', "temperature is nan"),
        ('{"messages": [], "settings": {"max_tokens": 0}}', "max_tokens is 0"),
        ('{"messages": [], "settings": {"stop": [""]}}', "a stop text is empty"),
        ('{"messages": [], "settings": {"stop": "END"}}', "the setting 'stop' is 'END'"),
        ("[" * 100_000, "is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "is not JSON"),
    ],
)
def test_a_file_that_save_did_not_write_is_refused_and_the_conversation_stays(
    talk: Open, screen: Screen, tmp_path: Path, content: str | bytes | None, error: str
) -> None:
    path = tmp_path / "talk.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    session = talk("Hi.")
    session.handle("Hello!")
    before = (said(session), session.params, session.system)
    session.handle(f"/load {path}")
    assert error in screen.remarks[-2] and screen.remarks[-2].startswith("error: ") and screen.last().startswith("hint: ")
    assert (said(session), session.params, session.system) == before


@pytest.mark.parametrize(("argument", "error"), [("", "/load needs a file name"), ("~no-such-person/x", "there is no home folder for")])
def test_a_name_that_is_none_cannot_be_loaded(talk: Open, screen: Screen, argument: str, error: str) -> None:
    talk("Hi.").handle(f"/load {argument}")
    assert error in screen.remarks[0]


def test_model_tells_which_one_answers_and_goes_on_with_another(says: Callable[..., LLM], screen: Screen) -> None:
    other = says("I am another.", context=128)
    other.name = "other"
    session = Session(says("Hi."), GREEDY, screen, load=lambda name: {"other": other}[name])
    session.handle("Hello!")
    session.handle("/model")
    assert screen.last().startswith("model: model, ") and "context 4,096 tokens" in screen.last()
    session.handle("/model other")
    assert screen.last().startswith("model: other, ") and "context 128 tokens" in screen.last()
    session.handle("And you?")
    assert said(session)[1:] == [("assistant", "Hi."), ("user", "And you?"), ("assistant", "I am another.")]


def test_a_model_that_is_not_there_leaves_the_one_that_is(says: Callable[..., LLM], screen: Screen) -> None:
    from herd.cli.load import load_llm

    session = Session(says("Hi."), GREEDY, screen, load=load_llm)
    session.handle("/model llama3.1:8")
    assert screen.remarks == ["error: there is no model 'llama3.1:8' on this machine", "hint: did you mean 'llama3.1:8b'?"]
    session.handle("Hello!")
    assert said(session)[-1] == ("assistant", "Hi.")


def test_a_session_of_one_model_refuses_another(talk: Open, screen: Screen) -> None:
    talk("Hi.").handle("/model other")
    assert screen.remarks[0] == "error: this session has one model"


def test_a_broken_pipe_is_not_swallowed(talk: Open) -> None:
    session = talk("Hi.")

    class Gone(Screen):
        def answer(self, text: str) -> None:
            raise BrokenPipeError

    session.screen = Gone()
    with pytest.raises(BrokenPipeError):
        session.handle("Hello!")
