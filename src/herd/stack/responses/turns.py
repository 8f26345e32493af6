"""A response with tools of the server's: one turn of the agents' loop, told as items.

The turn ends where the client has to do something: run a function, or say yes or no to a call. The next response goes on from what was
said; a yes runs the call first. Limits of the loop end in an answer of the model, which is a completed response; the limit of tokens is
the client's own, and an incomplete one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from herd.agents.config import AgentConfig, ApprovalMode, ApprovalPolicy, ClientTool, TurnLimits
from herd.agents.loop import run_turn
from herd.agents.runtime import Runtime
from herd.agents.steps import ModelStep, ToolStep
from herd.agents.toolset import Toolset
from herd.agents.turn import Turn
from herd.inference.port import Usage
from herd.safety.shields import Shields
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.responses.asking import choice_of
from herd.stack.responses.items import CODE, FILE_SEARCH, WEB_SEARCH, arguments_of
from herd.stack.responses.kit import Kit, Outfitter, is_server_tool
from herd.stack.responses.output import ItemDict, Output
from herd.stack.responses.turn_items import TurnTeller
from herd.stack.responses.types import ChosenTool
from herd.stack.responses.work import Asking, Ending, Telling
from herd.stack.served_inference import ServedInference
from herd.stack.service import Service
from herd.text.messages import Message, ToolCall
from herd.tools.tool import Taint

_SEEN = {
    "file_search_call": Taint(reads_untrusted=True, reads_private=True),
    "web_search_call": Taint(reads_untrusted=True),
    "mcp_call": Taint(reads_untrusted=True, acts_outside=True),
}
"""What an item of an earlier response brought into the conversation."""


def needs_turn(asking: Asking, tools: Sequence[Any]) -> bool:
    """Whether the loop has to run: a tool of the server's is on offer, or a call waits that was said yes to."""
    return any(is_server_tool(tool) for tool in tools) or bool(asking.approvals)


class Turns:
    """Answers by the loop."""

    def __init__(self, service: Service, outfitter: Outfitter, tools: Sequence[Any], *, shields: Shields | None = None) -> None:
        self._service, self._outfitter, self._tools, self._shields = service, outfitter, tools, shields

    async def __call__(self, asking: Asking, telling: Telling) -> Ending:
        """Answer."""
        taken = [tool.name for tool in asking.request.tools]
        kit = await self._outfitter.kit(asking.owner, self._tools, taken, [*asking.history, *asking.items])
        try:
            for item in kit.listed:
                _tell_listing(telling.output, item)
            container = _container(asking)
            turn = self._turn(asking, kit, container)
            runtime = Runtime(
                inference=ServedInference(self._service, asking.context, asking.body.model, guarded=True),
                tools=Toolset(kit.tools, _client_tools(asking)),
                shields=self._shields,
                caller=asking.request.caller,
            )
            config = _config(asking, kit)
            teller = TurnTeller(asking, telling, kit, container=container)
            async with aclosing(run_turn(runtime, config, turn)) as events:
                async for event in events:
                    ending = teller.take(event)
                    if ending is not None:
                        return ending
            return Ending(state="cancelled")
        finally:
            await kit.close()

    def _turn(self, asking: Asking, kit: Kit, container: str) -> Turn:
        """The turn as it stands: what was said, and calls that were said yes to."""
        messages = list(asking.request.messages)
        last = max((place + 1 for place, message in enumerate(messages) if message.role == "assistant"), default=0)
        head = last or sum(1 for message in messages if message.role == "system")
        turn = Turn(session_id=session_of(asking.owner, container), history=tuple(messages[:head]), inputs=tuple(messages[head:]))
        for item in [*asking.history, *asking.items]:
            turn.taint = turn.taint | _SEEN.get(item["type"], Taint())
        approved = asking.approvals
        if approved:
            calls = [_approved_call(request, kit) for request, _ in approved]
            now = time.time()
            turn.steps.append(
                ModelStep(
                    id=new_id("step_"),
                    number=0,
                    message=Message.assistant("", calls, ends_turn=False),
                    reason="tool_calls",
                    usage=Usage(prompt_tokens=0, completion_tokens=0),
                    started_at=now,
                    ended_at=now,
                )
            )
            for number, call in enumerate(calls, start=1):
                # The person saw the very call, and that is the gravest thing that is asked.
                step = ToolStep(id=new_id("step_"), number=number, call=call, approved="once", why="rule_of_two")
                step.taint = next((tool.taint for tool in kit.tools if tool.name == call.name), Taint())
                turn.steps.append(step)
        return turn


def _approved_call(request: ItemDict, kit: Kit) -> ToolCall:
    name = next(
        (name for name, kind in kit.kinds.items() if kind.label == request["server_label"] and request["name"] in (kind.name, name)),
        None,
    )
    if name is None:
        message = f"the tool {request['name']!r:.100} of {request['server_label']!r:.100} is not among the tools now"
        raise RequestError("usage", message, hint="give the tools that the request was made with", param="tools")
    return ToolCall(name=name, arguments=arguments_of(request["arguments"], "arguments"), id=request["id"])


def _container(asking: Asking) -> str:
    """Where code of this conversation runs: where it ran before, as far as that was of the same owner."""
    for item in reversed([*asking.history, *asking.items]):
        if item["type"] == "code_interpreter_call" and item.get("container_id"):
            return str(item["container_id"])
    return new_id("cntr_")


def session_of(owner: str, container: str) -> str:
    """The session of a container: no one gets into another's by its name."""
    return hashlib.sha256(f"{owner}\0{container}".encode("utf-8", "replace")).hexdigest()[:32]


def _client_tools(asking: Asking) -> list[ClientTool]:
    return [ClientTool(definition=tool, taint=Taint()) for tool in asking.request.tools]


def _config(asking: Asking, kit: Kit) -> AgentConfig:
    body, request = asking.body, asking.request
    modes: dict[str, ApprovalMode] = dict.fromkeys(kit.ask, "ask")
    limits = TurnLimits()
    limits = replace(
        limits,
        max_steps=max(limits.max_steps, (body.max_tool_calls or 0) + 1),
        max_tool_calls=body.max_tool_calls or limits.max_tool_calls,
        max_tokens=body.max_output_tokens,
        final_tokens=min(limits.final_tokens, body.max_output_tokens or limits.final_tokens),
    )
    choice, named, _ = choice_of(body)
    name = None if named is None else _name_of(named, kit)
    if asking.approvals:
        choice, name = "auto", None  # what had to be called was, and waits
    return AgentConfig(
        model=asking.response["model"],
        client_tools=tuple(_client_tools(asking)),
        shields=(),
        limits=limits,
        approval=ApprovalPolicy(outside="auto", other="auto", by_tool=modes),
        sampling=replace(request.params, max_tokens=None, logprobs=None),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=request.parallel_tool_calls,
        response_schema=asking.schema,
    )


def _name_of(chosen: ChosenTool, kit: Kit) -> str | None:
    """What the model calls a tool by; of an MCP server, where it has one alone or one is named."""
    if chosen.type == "function":
        return chosen.name
    if chosen.type != "mcp":
        kinds = {WEB_SEARCH: "web_search_call", FILE_SEARCH: "file_search_call", CODE: "code_interpreter_call"}
        wanted = kinds["web_search" if chosen.type.startswith("web_search") else chosen.type]
        return next((name for name, kind in kit.kinds.items() if kind.item == wanted), None)
    of_server = [name for name, kind in kit.kinds.items() if kind.item == "mcp_call" and kind.label == chosen.server_label]
    found = [name for name in of_server if chosen.name in (None, kit.kinds[name].name)]
    return found[0] if len(found) == 1 else None


def _tell_listing(output: Output, listing: ItemDict) -> None:
    tools, error = listing["tools"], listing["error"]
    item = output.begin({**listing, "tools": []})
    item["tools"] = tools
    output.finish(item, failed=error is not None)
