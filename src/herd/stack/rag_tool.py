"""/v1/tool-runtime/rag-tool: the Llama Stack's own way to keep documents in a vector store and to ask it, as llama-stack-client 0.2 does.

A document comes as text, or as a URL that is fetched by the policy of the server's tools: public addresses alone, each redirect checked
anew. It is cut and embedded before the route answers, and nothing of it is kept where something fails.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.base.errors import UsageError
from herd.stack.answers import json_response, unless_gone
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.rag_types import Document, Place, QueryConfig, RagInsertBody, RagQueryBody, Ranker, parts_of
from herd.store.ranking import Ranking
from herd.store.search import Hit
from herd.tools.retrieval.chunking import Chunking, cut
from herd.tools.retrieval.extract import extract_text
from herd.tools.retrieval.service import Retrieval
from herd.tools.web.address import WebPolicy
from herd.tools.web.fetch import Fetcher

_ENDINGS = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "application/json": ".json",
    "text/csv": ".csv",
    "text/markdown": ".md",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}


def rag_tool_routes(retrieval: Retrieval, policy: WebPolicy) -> APIRouter:
    """The routes."""
    router = APIRouter()

    async def resolved(request: Request, name: str) -> str:
        return (await asyncio.to_thread(retrieval.stores.resolve, owner_of(request), name)).id

    @router.post("/v1/tool-runtime/rag-tool/insert", summary="Keep documents in a vector store", response_model=None)
    async def insert(body: RagInsertBody, request: Request) -> Response:
        named = body.vector_db_id or body.vector_store_id
        if named is None:
            raise RequestError("usage", "no store is named", hint="give vector_db_id", param="vector_db_id")
        store_id, chunking = await resolved(request, named), _chunking(body.chunk_size_in_tokens, retrieval.most_tokens)

        async def work() -> None:
            documents: dict[str, list[tuple[str, dict[str, Any]]]] = {}
            for document in body.documents:
                text = await _text_of(document, policy)
                spans = await asyncio.to_thread(cut, text, chunking, retrieval.embedder.tokenizer)
                meta = {**document.metadata, "document_id": document.document_id}
                documents.setdefault(document.document_id, []).extend((text[span.start : span.end], meta) for span in spans)
            await retrieval.insert(owner_of(request), store_id, documents)

        await unless_gone(request, work())
        return json_response(None)

    @router.post("/v1/tool-runtime/rag-tool/query", summary="Passages for a question, as text for a model", response_model=None)
    async def query(body: RagQueryBody, request: Request) -> Response:
        named, how = body.vector_db_ids or body.vector_store_ids or [], body.query_config or QueryConfig()
        if not named:
            raise RequestError("usage", "no store is named", hint="give vector_db_ids", param="vector_db_ids")
        text = _question(body, how)
        stores = [await resolved(request, name) for name in named]
        ask = retrieval.search(
            owner_of(request), stores, [text], mode=how.mode or "vector", limit=how.max_chunks, ranking=_ranking(how.ranker)
        )
        hits = await unless_gone(request, ask)
        return json_response(await asyncio.to_thread(_result, hits, how, dict(zip(stores, named, strict=True)), retrieval))

    return router


def _chunking(asked: int, most: int) -> Chunking:
    if asked > most:
        message = f"passages of {asked:,} tokens are asked for, the model reads {most:,} at most"
        raise RequestError("usage", message, hint="choose a smaller chunk_size_in_tokens", param="chunk_size_in_tokens")
    try:
        return Chunking(max_tokens=asked, overlap=asked // 4)
    except UsageError as error:
        told = f"chunk_size_in_tokens is {asked:,}"
        raise RequestError("usage", told, hint=error.hint or "choose another", param="chunk_size_in_tokens") from error


async def _text_of(document: Document, policy: WebPolicy) -> str:
    """Its text. Raises RequestError, ToolError, DeniedAddressError."""
    if not isinstance(document.content, Place):
        text = "\n".join(parts_of(document.content))
    else:
        uri = document.content.uri
        data, kind = _of_data_url(uri) if uri.lower().startswith("data:") else await _fetched(uri, policy)
        kind = (document.mime_type or kind).partition(";")[0].strip().lower()
        text = await asyncio.to_thread(extract_text, "document" + _ENDINGS.get(kind, ".txt"), data)
    if not text.strip():
        raise RequestError("usage", f"the document {document.document_id!r:.100} has no text", hint="leave it out", param="documents")
    return text


def _of_data_url(uri: str) -> tuple[bytes, str]:
    head, comma, body = uri[5:].partition(",")
    try:
        data = base64.b64decode(unquote_to_bytes(body), validate=True) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise RequestError("format", "the data: URL is not base64", hint="write data:text/plain;base64,...", param="documents") from error
    if not comma:
        raise RequestError("format", "the data: URL has no data", hint="write data:text/plain,...", param="documents")
    return data, head.partition(";")[0] or "text/plain"


async def _fetched(uri: str, policy: WebPolicy) -> tuple[bytes, str]:
    got = await Fetcher(policy).get(uri)
    if got.status >= 400:
        raise RequestError("usage", f"{got.url!r:.200} answered with status {got.status}", hint="give the text itself", param="documents")
    if got.truncated:
        raise RequestError("too_large", f"{got.url!r:.200} is too large to be fetched", hint="upload it as a file", param="documents")
    return got.body, got.content_type


def _question(body: RagQueryBody, how: QueryConfig) -> str:
    generator = how.query_generator_config
    if generator is not None and generator.type == "llm":
        message = "query_generator_config: queries are not written by a model here"
        raise RequestError("usage", message, hint='leave it out, or give type "default"', param="query_config")
    if "{chunk.content}" not in how.chunk_template:
        raise RequestError("usage", "chunk_template has no {chunk.content}", hint="leave it out for the usual one", param="query_config")
    text = (" " if generator is None else generator.separator).join(parts_of(body.content))
    if not text.strip():
        raise RequestError("usage", "the query has no text", hint="ask for something", param="content")
    return text


def _ranking(ranker: Ranker | None) -> Ranking:
    if ranker is None or ranker.type == "rrf":
        return Ranking(constant=60.0 if ranker is None else ranker.impact_factor)
    return Ranking(method="weighted", vector_weight=ranker.alpha, keyword_weight=1.0 - ranker.alpha)


def _result(hits: list[Hit], how: QueryConfig, names: dict[str, str], retrieval: Retrieval) -> dict[str, Any]:
    """What a model reads, and what it is made of. Passages that the limit of tokens leaves out are counted."""
    told: list[tuple[Hit, str]] = []
    left = how.max_tokens_in_context
    for hit in hits:
        meta = {**hit.attributes, **hit.meta}
        text = _filled(how.chunk_template, len(told) + 1, hit.text, meta)
        left -= len(retrieval.embedder.tokenizer.encode(text))
        if left < 0:
            break
        told.append((hit, text))
    metadata = {
        "document_ids": [str(hit.meta.get("document_id", hit.file_id)) for hit, _ in told],
        "chunks": [hit.text for hit, _ in told],
        "scores": [round(hit.score, 6) for hit, _ in told],
        "vector_db_ids": [names[hit.store_id] for hit, _ in told],
        "omitted": len(hits) - len(told),
    }
    if not told:
        return {"content": None, "metadata": metadata}
    head = f"knowledge_search tool found {len(told)} chunks:\nBEGIN of knowledge_search tool results.\n"
    texts = [head, *(text for _, text in told), "END of knowledge_search tool results.\n"]
    return {"content": [{"type": "text", "text": text} for text in texts], "metadata": metadata}


def _filled(template: str, index: int, text: str, meta: dict[str, Any]) -> str:
    """The template, its placeholders and nothing else put in: what is put in is not read again."""
    values = {"{index}": str(index), "{chunk.content}": text, "{metadata}": json.dumps(meta, ensure_ascii=False)}
    out, place = [], 0
    while place < len(template):
        name = next((name for name in values if template.startswith(name, place)), None)
        out.append(template[place] if name is None else values[name])
        place += 1 if name is None else len(name)
    return "".join(out)
