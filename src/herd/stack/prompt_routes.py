"""/v1/prompts: texts that applications keep here, in versions. Each key has prompts of its own; nothing is ever changed in place."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.registrations import Registrations
from herd.stack.service import Service
from herd.stack.stack_types import DefaultVersionBody, PromptBody, PromptUpdateBody
from herd.stack.types import MAX_INT

MOST_VERSIONS = 100
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
Version = Annotated[int | None, Query(ge=1, le=MAX_INT)]


def prompt_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    _add_prompts(router, service.registrations)
    _add_versions(router, service.registrations)
    return router


async def _write(kept: Registrations, owner: str, name: str, thing: dict[str, Any], expected: dict[str, Any] | None) -> None:
    await asyncio.to_thread(lambda: kept.put(owner, "prompts", name, thing, expected=expected))


def _find(kept: Registrations, request: Request, name: str) -> dict[str, Any]:
    found = kept.get(owner_of(request), "prompts", name)
    if found is None:
        raise RequestError("not_found", f"there is no prompt {name!r:.100}", hint="GET /v1/prompts lists yours")
    return found


def _add_prompts(router: APIRouter, kept: Registrations) -> None:
    @router.get("/v1/prompts", summary="Your prompts, each in its default version", response_model=None)
    async def prompts(request: Request) -> Response:
        found = kept.all(owner_of(request), "prompts")
        return json_response({"data": [_version(name, thing, None) for name, thing in found.items()]})

    @router.post("/v1/prompts", summary="Keep a prompt", response_model=None)
    async def create(body: PromptBody, request: Request) -> Response:
        name = "pmpt_" + secrets.token_hex(24)
        thing = {"default": 1, "versions": [_text(body)]}
        await _write(kept, owner_of(request), name, thing, None)
        return json_response(_version(name, thing, None))

    @router.get("/v1/prompts/{prompt_id}", summary="One prompt, in a version or in its default one", response_model=None)
    async def prompt(prompt_id: str, request: Request, version: Version = None) -> Response:
        return json_response(_version(prompt_id, _find(kept, request, prompt_id), version))

    @router.delete("/v1/prompts/{prompt_id}", summary="Forget a prompt", response_model=None)
    async def delete(prompt_id: str, request: Request) -> Response:
        _find(kept, request, prompt_id)
        await asyncio.to_thread(kept.drop, owner_of(request), "prompts", prompt_id)
        return json_response(None)


def _add_versions(router: APIRouter, kept: Registrations) -> None:
    async def update(prompt_id: str, body: PromptUpdateBody, request: Request) -> Response:
        found = _find(kept, request, prompt_id)
        newest = len(found["versions"])
        if body.version != newest:
            message = f"version {body.version} is not the newest, which is {newest}"
            raise RequestError("conflict", message, hint="read the newest and change that", param="version")
        if newest >= MOST_VERSIONS:
            raise RequestError(
                "conflict", f"the prompt has {MOST_VERSIONS} versions, the most there can be", hint="keep it as a new prompt"
            )
        default = newest + 1 if body.set_as_default else found["default"]
        thing = {"default": default, "versions": [*found["versions"], _text(body)]}
        await _write(kept, owner_of(request), prompt_id, thing, found)
        return json_response(_version(prompt_id, thing, newest + 1))

    async def set_default(prompt_id: str, body: DefaultVersionBody, request: Request) -> Response:
        found = _find(kept, request, prompt_id)
        told = _version(prompt_id, found, body.version)
        await _write(kept, owner_of(request), prompt_id, {**found, "default": body.version}, found)
        return json_response({**told, "is_default": True})

    # 0.7 posts what OGX puts.
    for method in ("POST", "PUT"):
        router.add_api_route(
            "/v1/prompts/{prompt_id}",
            update,
            methods=[method],
            summary="Write the next version",
            response_model=None,
            operation_id=f"update_prompt_{method.lower()}",
        )
        router.add_api_route(
            "/v1/prompts/{prompt_id}/set-default-version",
            set_default,
            methods=[method],
            summary="Choose the version that is given without a number",
            response_model=None,
            operation_id=f"set_default_version_{method.lower()}",
        )

    @router.get("/v1/prompts/{prompt_id}/versions", summary="All versions of a prompt", response_model=None)
    async def versions(prompt_id: str, request: Request) -> Response:
        found = _find(kept, request, prompt_id)
        return json_response({"data": [_version(prompt_id, found, number + 1) for number in range(len(found["versions"]))]})


def _text(body: PromptBody) -> dict[str, Any]:
    """What a version keeps. Raises RequestError for variables that the text does not have, or has without their being named."""
    written = list(dict.fromkeys(_VARIABLE.findall(body.prompt)))
    named = written if body.variables is None else list(body.variables)
    odd = sorted(set(named) ^ set(written))
    if odd:
        message = f"the variable {odd[0]!r:.100} is named or written, but not both"
        raise RequestError("usage", message, hint="write {{ name }} for each of variables", param="variables")
    return {"prompt": body.prompt, "variables": named}


def _version(name: str, thing: dict[str, Any], version: int | None) -> dict[str, Any]:
    number = thing["default"] if version is None else version
    if not 1 <= number <= len(thing["versions"]):
        raise RequestError(
            "not_found", f"the prompt has no version {number}", hint=f"it has 1 to {len(thing['versions'])}", param="version"
        )
    return {"prompt_id": name, "version": number, "is_default": number == thing["default"], **thing["versions"][number - 1]}
