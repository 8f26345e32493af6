"""The Llama 3.1 prompt format: a conversation as segments, as text, as token ids.

Three variants: `docs` (the published prompt format document), `july-2024` (the release's own templates) and `huggingface` (the chat
template in Hugging Face repositories). Special tokens are segments of their own and content is encoded as ordinary text, so no content
can forge a header. Knows messages and tool definitions; what the model answers is read by `reply`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from herd.base.errors import FormatError, did_you_mean
from herd.text.messages import BUILTIN_TOOLS, CODE_INTERPRETER, Message, TextPart, ToolCall, ToolDefinition, as_messages, as_tools
from herd.text.specials import BEGIN_OF_TEXT, END_HEADER, EOM, EOT, PYTHON_TAG, START_HEADER
from herd.text.tokenizer import Tokenizer
from herd.text.tool_calls import TOOL_STYLES, ToolStyle, json_text, render_builtin, render_custom
from herd.text.tool_prompts import function_tag_definitions, huggingface_definitions, json_definitions, python_list_definitions

Variant = Literal["docs", "july-2024", "huggingface"]
VARIANTS: tuple[Variant, ...] = ("docs", "july-2024", "huggingface")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
_HUGGINGFACE_TODAY = "26 Jul 2024"
_HEADERS = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of a prompt: ordinary text, or one special token by name. `answer` marks what an assistant would have to produce."""

    text: str
    special: bool = False
    answer: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """How conversations become prompts.

    Attributes:
        variant: whose rendering.
        tool_style: how the caller's tools are described and called.
        today: the text of "Today Date"; None takes the date of the day (the Hugging Face template has a fixed default of its own).
        knowledge_date: the text of "Cutting Knowledge Date".
        dates: whether the system message tells the two dates; None: when tools are on (always in the Hugging Face variant).
    """

    variant: Variant = "docs"
    tool_style: ToolStyle = "json"
    today: str | None = None
    knowledge_date: str = "December 2023"
    dates: bool | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise FormatError(
                f"unknown prompt format variant {self.variant!r}",
                hint=did_you_mean(str(self.variant), VARIANTS, otherwise="variants: " + ", ".join(VARIANTS)),
            )
        if self.tool_style not in TOOL_STYLES:
            raise FormatError(
                f"unknown tool style {self.tool_style!r}",
                hint=did_you_mean(str(self.tool_style), TOOL_STYLES, otherwise="styles: " + ", ".join(TOOL_STYLES)),
            )

    def segments(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
        generation_prompt: bool = True,
    ) -> list[Segment]:
        """The conversation as segments, with the assistant's header at the end unless `generation_prompt` is false.

        Args:
            messages: `Message`s or dicts in OpenAI's shape; at most the first is a system message.
            tools: tools that the caller defines, as `ToolDefinition`s or in OpenAI's shape.
            builtin_tools: names from `messages.BUILTIN_TOOLS`.
            generation_prompt: end with the header of the answer to come.

        Raises:
            FormatError: a message or tool of the wrong shape, an unknown built-in tool, a call that the format cannot carry.
        """
        conversation = as_messages(messages)
        defined = as_tools(tools)
        for name in builtin_tools:
            if name not in BUILTIN_TOOLS:
                raise FormatError(
                    f"unknown built-in tool {name!r}", hint=did_you_mean(name, BUILTIN_TOOLS, otherwise="define it with `tools`")
                )
        segments = [Segment(text=BEGIN_OF_TEXT, special=True)]
        for message in self._with_preamble(conversation, defined, builtin_tools):
            segments += self._message(message, builtin_tools=builtin_tools, tools_on=bool(defined or builtin_tools))
        if generation_prompt:
            segments += _header("assistant")
        return segments

    def render(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
        generation_prompt: bool = True,
    ) -> str:
        """The prompt as text, special tokens spelled out. For people and logs: encode with `encode`, which content cannot fool."""
        parts = self.segments(messages, tools=tools, builtin_tools=builtin_tools, generation_prompt=generation_prompt)
        return "".join(segment.text for segment in parts)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
        generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt as token ids. Raises FormatError as `segments` does, TokenizerError for a tokenizer without Llama's special tokens."""
        parts = self.segments(messages, tools=tools, builtin_tools=builtin_tools, generation_prompt=generation_prompt)
        return self._encode(tokenizer, parts)[0]

    def encode_with_mask(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
    ) -> tuple[list[int], list[bool]]:
        """A finished conversation as token ids, and for each whether an assistant wrote it: content and end token count, headers not."""
        parts = self.segments(messages, tools=tools, builtin_tools=builtin_tools, generation_prompt=False)
        return self._encode(tokenizer, parts)

    def _encode(self, tokenizer: Tokenizer, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        answer: list[bool] = []
        for segment in self._joined(segments):
            new = [tokenizer.special_id(segment.text)] if segment.special else tokenizer.encode(segment.text)
            ids += new
            answer += [segment.answer] * len(new)
        return ids, answer

    def _joined(self, segments: Sequence[Segment]) -> list[Segment]:
        """Meta's formatter encodes a header's line ends and the content apart; Hugging Face encodes rendered text, so there they join.

        An answer stays apart: it begins with no white space there, so its ids are the same, and the mask must not cover the header.
        """
        if self.variant != "huggingface":
            return list(segments)
        joined: list[Segment] = []
        for segment in segments:
            last = joined[-1] if joined else None
            if last is not None and not segment.special and not last.special and segment.answer == last.answer:
                joined[-1] = Segment(text=last.text + segment.text, answer=segment.answer)
            else:
                joined.append(segment)
        return joined

    def _message(self, message: Message, *, builtin_tools: Sequence[str], tools_on: bool) -> list[Segment]:
        answer = message.role == "assistant"
        body = self._calls(message, builtin_tools, tools_on) if message.tool_calls else [_text(self._content(message), answer=answer)]
        end = EOM if message.role == "assistant" and self._continues(message, builtin_tools, tools_on) else EOT
        kept = [segment for segment in body if segment.text]
        return [*_header(_HEADERS[message.role]), *kept, Segment(text=end, special=True, answer=answer)]

    def _content(self, message: Message) -> str:
        if self.variant != "huggingface":
            return message.text
        return json_text(message.text) if message.role == "tool" else message.text

    def _continues(self, message: Message, builtin_tools: Sequence[str], tools_on: bool) -> bool:
        """Whether a message ends with <|eom_id|>: a call under `Environment: ipython` waits for its result."""
        if self.variant == "huggingface":
            return bool(message.tool_calls) and bool(builtin_tools)
        custom = self.tool_style == "json" and self.variant == "docs" and tools_on
        builtin = any(call.name in BUILTIN_TOOLS for call in message.tool_calls)
        return not message.ends_turn or builtin or (bool(message.tool_calls) and custom)

    def _calls(self, message: Message, builtin_tools: Sequence[str], tools_on: bool) -> list[Segment]:
        """The body of a message that calls tools: its text if it has any, the tag where the variant wants it, the calls."""
        calls = message.tool_calls
        if self.variant == "huggingface":
            return self._huggingface_call(calls, builtin_tools)
        builtin = [call for call in calls if call.name in BUILTIN_TOOLS]
        if builtin and len(calls) > 1:
            raise FormatError(
                f"{len(calls)} calls in one message, one of them of {builtin[0].name}", hint="a built-in tool is called alone"
            )
        if len(calls) > 1 and self.tool_style != "python_list" and self.variant == "july-2024":
            raise FormatError(f"{len(calls)} calls in one message", hint="the July 2024 format carries one call a message")
        tagged = bool(builtin) or self.variant == "july-2024" or (self.tool_style == "json" and (tools_on or not message.ends_turn))
        body = render_builtin(builtin[0]) if builtin else render_custom(calls, self.tool_style)
        tag = [Segment(text=PYTHON_TAG, special=True, answer=True)] if tagged else []
        return [_text(message.text, answer=True), *tag, _text(body, answer=True)]

    def _huggingface_call(self, calls: Sequence[ToolCall], builtin_tools: Sequence[str]) -> list[Segment]:
        if len(calls) != 1:
            raise FormatError(f"{len(calls)} calls in one message", hint="the Hugging Face template carries one call a message")
        call = calls[0]
        if call.name in builtin_tools:
            arguments = ", ".join(f'{key}="{value}"' for key, value in call.arguments.items())
            return [Segment(text=PYTHON_TAG, special=True, answer=True), _text(f"{call.name}.call({arguments})", answer=True)]
        return [_text(json_text({"name": call.name, "parameters": call.arguments}), answer=True)]

    def _with_preamble(self, messages: list[Message], tools: list[ToolDefinition], builtin_tools: Sequence[str]) -> list[Message]:
        """The messages with the assembled system message and the tools' description put in."""
        instruction = messages[0].text if messages and messages[0].role == "system" else None
        rest = messages[1:] if instruction is not None else messages
        if any(message.role == "system" for message in rest):
            raise FormatError("a system message stands after the first message", hint="put all instructions into the first message")
        if self.variant == "huggingface":
            return self._huggingface_preamble(instruction, rest, tools, builtin_tools)
        if tools and self.tool_style == "python_list":
            definitions = self._environment(builtin_tools, has_tools=bool(builtin_tools), dates=bool(self.dates)) + python_list_definitions(
                tools
            )
            return [Message.system(definitions if instruction is None else f"{definitions}\n\n{instruction}"), *rest]
        has_tools = bool(tools or builtin_tools)
        dates = has_tools if self.dates is None else self.dates
        if not has_tools and not dates:
            return messages
        system = Message.system(self._system(instruction, builtin_tools, has_tools=has_tools, dates=dates))
        return [system, *([Message.user(self._definitions(tools))] if tools else []), *rest]

    def _definitions(self, tools: list[ToolDefinition]) -> str:
        if self.tool_style == "function":
            return function_tag_definitions(tools, july_2024=self.variant == "july-2024")
        return json_definitions(tools)

    def _system(self, instruction: str | None, builtin_tools: Sequence[str], *, has_tools: bool, dates: bool) -> str:
        """Environment, tools, dates, a blank line and the instruction, a line end."""
        text = self._environment(builtin_tools, has_tools=has_tools, dates=dates)
        return text + (f"\n{instruction}\n" if instruction else "")

    def _environment(self, builtin_tools: Sequence[str], *, has_tools: bool, dates: bool) -> str:
        """The first lines of a system message: environment and built-in tools, then the dates."""
        named = [name for name in builtin_tools if name != CODE_INTERPRETER]
        text = ""
        if has_tools:
            text += "Environment: ipython\n" + (f"Tools: {', '.join(named)}\n" if named else "")
            if dates and (not named or self.variant == "july-2024"):
                text += "\n"
        if dates:
            text += f"Cutting Knowledge Date: {self.knowledge_date}\nToday Date: {self._today()}\n"
        return text

    def _today(self) -> str:
        if self.today is not None:
            return self.today
        if self.variant == "huggingface":
            return _HUGGINGFACE_TODAY
        now = date.today()
        return f"{now.day:02d} {_MONTHS[now.month - 1]} {now.year}"

    def _huggingface_preamble(
        self, instruction: str | None, rest: list[Message], tools: list[ToolDefinition], builtin_tools: Sequence[str]
    ) -> list[Message]:
        """The template always writes a system message, and puts the tools into the first user message."""
        named = [name for name in builtin_tools if name != CODE_INTERPRETER]
        text = "Environment: ipython\n" if tools or builtin_tools else ""
        text += f"Tools: {', '.join(named)}\n\n" if builtin_tools else ""
        if self.dates is not False:
            text += f"Cutting Knowledge Date: {self.knowledge_date}\nToday Date: {self._today()}\n\n"
        system = Message.system(text + (instruction or "").strip())
        rest = [message if message.tool_calls or message.role == "tool" else _stripped(message) for message in rest]
        if not tools:
            return [system, *rest]
        if not rest or rest[0].role != "user":
            raise FormatError("the first message is not the user's", hint="this variant describes tools in the first user message")
        return [system, Message.user(huggingface_definitions(tools) + rest[0].text), *rest[1:]]


def _text(text: str, *, answer: bool = False) -> Segment:
    return Segment(text=text, answer=answer)


def _header(role: str) -> list[Segment]:
    return [Segment(text=START_HEADER, special=True), Segment(text=role), Segment(text=END_HEADER, special=True), Segment(text="\n\n")]


def _stripped(message: Message) -> Message:
    return Message(role=message.role, parts=(TextPart(text=message.text.strip()),), ends_turn=message.ends_turn)
