"""Tools over HTTP in the Llama Stack's shapes. A tool has 0.2's list of parameters and 0.3's schema, so that clients of both read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.base.errors import NotFoundError
from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.service import Service
from herd.stack.stack_types import InvokeBody, ToolGroupBody
from herd.stack.toolkit import MCP_PROVIDER, OWN_PROVIDER, FoundTool, ServerTools
from herd.tools.mcp.pins import RemoteTool
from herd.tools.mcp.tools import visible
from herd.tools.tool import ToolResult

Group = Annotated[str | None, Query(max_length=100)]
Uri = Annotated[str | None, Query(max_length=4096)]
_NUMBERS = {"tool_arguments": 400, "not_found": 404, "timeout": 408, "denied_address": 403, "consent": 403}
"""Where the Stack's result has a number; the word stands in its metadata."""


def tool_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    _add_tools(router, service.tools)
    _add_groups(router, service.tools)
    return router


def _add_tools(router: APIRouter, tools: ServerTools) -> None:
    async def listed(owner: str, group: str | None) -> Response:
        found = [tool_object(one) for one in await tools.tools(owner, group)]
        return json_response({"data": found, "missing": await tools.missing(owner)})

    @router.get("/v1/tools", summary="The tools that you can use, and why others are missing", response_model=None)
    async def all_tools(request: Request, toolgroup_id: Group = None) -> Response:
        return await listed(owner_of(request), toolgroup_id)

    @router.get("/v1/tools/{tool_name:path}", summary="One tool", response_model=None)
    async def one_tool(tool_name: str, request: Request) -> Response:
        return json_response(tool_object(await tools.find(owner_of(request), tool_name)))

    @router.get("/v1/tool-runtime/list-tools", summary="The tools of a group, or of an MCP server by its URL", response_model=None)
    async def list_tools(request: Request, tool_group_id: Group = None, mcp_endpoint: Uri = None) -> Response:
        if mcp_endpoint is None:
            return await listed(owner_of(request), tool_group_id)
        uri = _uri(mcp_endpoint)
        return json_response({"data": [_remote_object(tool, uri) for tool in await tools.list_remote(uri)]})

    @router.post("/v1/tool-runtime/invoke", summary="Call a tool", response_model=None)
    async def invoke(body: InvokeBody, request: Request) -> Response:
        """What goes wrong within the tool is told in the result, for a model to read."""
        return json_response(result_object(await tools.invoke(owner_of(request), body.tool_name, body.kwargs)))


def _add_groups(router: APIRouter, tools: ServerTools) -> None:
    @router.get("/v1/toolgroups", summary="The groups of tools that you can use", response_model=None)
    async def groups(request: Request) -> Response:
        return json_response({"data": await tools.groups(owner_of(request))})

    @router.post("/v1/toolgroups", summary="Register an MCP server as a group of yours", response_model=None)
    async def register(body: ToolGroupBody, request: Request) -> Response:
        owner = owner_of(request)
        if body.provider_id != MCP_PROVIDER or body.mcp_endpoint is None:
            message = f"the provider {body.provider_id!r:.60} without an mcp_endpoint cannot be registered"
            if body.mcp_endpoint is not None:
                message = f"the provider {body.provider_id!r:.60} cannot be registered"
            raise RequestError(
                "usage", message, hint=f"give provider_id {MCP_PROVIDER!r} and mcp_endpoint; other groups come by herd's settings",
                param="provider_id",
            )  # fmt: skip
        await tools.register(owner, body.toolgroup_id, body.mcp_endpoint.uri, body.args or {})
        return json_response(await _group(tools, body.toolgroup_id, owner))

    @router.get("/v1/toolgroups/{toolgroup_id:path}", summary="One group", response_model=None)
    async def group(toolgroup_id: str, request: Request) -> Response:
        return json_response(await _group(tools, toolgroup_id, owner_of(request)))

    @router.delete("/v1/toolgroups/{toolgroup_id:path}", summary="Unregister a group of yours", response_model=None)
    async def unregister(toolgroup_id: str, request: Request) -> Response:
        await tools.unregister(owner_of(request), toolgroup_id)
        return json_response(None)


async def _group(tools: ServerTools, name: str, owner: str) -> dict[str, Any]:
    found = next((one for one in await tools.groups(owner) if one["identifier"] == name), None)
    if found is None:
        reason = (await tools.missing(owner)).get(name)
        told = f"there is no tool group {name!r:.100}" + (f": {reason}" if reason else "")
        raise NotFoundError(told, hint="GET /v1/toolgroups lists those there are")
    return found


def _uri(text: str) -> str:
    """An endpoint in a query: the URL itself, or the JSON object that 0.2's client makes of it."""
    if text.startswith("{"):
        try:
            return str(json.loads(text)["uri"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RequestError("format", "mcp_endpoint is neither a URL nor an object with a uri", param="mcp_endpoint") from error
    return text


def _parameters(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """0.2's list of a schema's properties."""
    required = schema.get("required") or ()
    properties: Any = schema.get("properties") or {}
    return [
        {
            "name": name,
            "parameter_type": str(_kind(inner)),
            "description": str((inner.get("description") if isinstance(inner, dict) else None) or ""),
            "required": name in required,
            "default": inner.get("default") if isinstance(inner, dict) else None,
        }
        for name, inner in properties.items()
    ]


def _kind(schema: Any) -> Any:
    kind = schema.get("type", "string") if isinstance(schema, dict) else "string"
    return kind[0] if isinstance(kind, list) and kind else kind


def tool_object(found: FoundTool) -> dict[str, Any]:
    """A tool, for every generation."""
    tool = found.tool
    taint = [name for name in ("reads_untrusted", "reads_private", "acts_outside") if getattr(tool.taint, name)]
    return {
        "identifier": tool.name,
        "name": tool.name,
        "type": "tool",
        "description": tool.description,
        "parameters": _parameters(tool.parameters),
        "input_schema": dict(tool.parameters),
        "output_schema": None,
        "toolgroup_id": found.group,
        "provider_id": MCP_PROVIDER if "__" in tool.name else OWN_PROVIDER,
        "provider_resource_id": tool.name,
        "metadata": {"taint": taint},
    }


def _remote_object(tool: RemoteTool, uri: str) -> dict[str, Any]:
    return {
        "name": tool.name,
        "identifier": tool.name,
        "description": visible(tool.description)[:4000],
        "parameters": _parameters(tool.parameters),
        "input_schema": dict(tool.parameters),
        "toolgroup_id": None,
        "metadata": {"endpoint": uri},
    }


def result_object(result: ToolResult) -> dict[str, Any]:
    """A result as 0.2's clients read it, with a number for an error, and herd's own words in its metadata."""
    told = result.to_dict()
    number = None if result.ok else _NUMBERS.get(result.error_code or "", 500)
    return {**told, "error_code": number, "metadata": {**told["metadata"], "error_code": result.error_code}}
