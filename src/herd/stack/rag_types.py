"""What /v1/tool-runtime/rag-tool takes, field by field. Source: llama-stack-client 0.2.12."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from herd.stack.types import MAX_TEXT, Lenient, Text, TextContent
from herd.stack.vector_types import Filters, Id

DEFAULT_TEMPLATE = "Result {index}\nContent: {chunk.content}\nMetadata: {metadata}\n"


class Place(Lenient):
    """Where a document is."""

    uri: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] = Field(description="A public http or https URL, or a data: URL.")


Content = Text | Annotated[list[TextContent], Field(max_length=4096, fail_fast=True)] | TextContent | Place


class Document(Lenient):
    """A document that is to be kept."""

    document_id: Id = Field(description="The name that it is told by.")
    content: Content = Field(description="Its text, or where it is.")
    mime_type: str | None = Field(default=None, max_length=256, description="Of a data: URL or a page that does not say: what it is.")
    metadata: Filters = Field(default_factory=dict, description="Told with its passages; plain values can be filtered by.")


class RagInsertBody(Lenient):
    """POST /v1/tool-runtime/rag-tool/insert."""

    documents: list[Document] = Field(min_length=1, max_length=256, fail_fast=True, description="What to keep.")
    vector_db_id: Id | None = Field(default=None, description="The store, by its name or its id.")
    vector_store_id: Id | None = Field(default=None, description="The newer name of vector_db_id.")
    chunk_size_in_tokens: int = Field(default=512, ge=1, le=2**20, description="Tokens of a passage at most; a quarter of it is shared.")


class QueryGenerator(Lenient):
    """How a query is made of what is asked."""

    type: Literal["default", "llm"] = Field(default="default", description="default: it is the text that is asked.")
    separator: str = Field(default=" ", max_length=16, description="Between the parts of what is asked.")


class Ranker(Lenient):
    """How two rankings become one."""

    type: Literal["rrf", "weighted"] = Field(default="rrf", description="By ranks, or by scores.")
    impact_factor: float = Field(default=60.0, gt=0, le=10_000, description="Of rrf: the larger, the less first places count.")
    alpha: float = Field(default=0.5, ge=0, le=1, description="Of weighted: what vectors count, beside words.")


class QueryConfig(Lenient):
    """How to search, and how what is found is told."""

    mode: Literal["vector", "keyword", "hybrid"] | None = Field(default=None, description="By vectors, by words, or both; default vector.")
    max_chunks: int = Field(default=5, ge=1, le=50, description="Passages at most.")
    max_tokens_in_context: int = Field(
        default=4096, ge=1, le=2**24, description="Tokens of all passages at most; those over it are told of."
    )
    chunk_template: str = Field(
        default=DEFAULT_TEMPLATE, max_length=4096, description="A passage, with {index}, {chunk.content}, {metadata}."
    )
    query_generator_config: QueryGenerator | None = Field(default=None, description="How the query is made.")
    ranker: Ranker | None = Field(default=None, description="Of mode hybrid.")


class RagQueryBody(Lenient):
    """POST /v1/tool-runtime/rag-tool/query."""

    content: Text | Annotated[list[TextContent], Field(max_length=4096, fail_fast=True)] | TextContent = Field(description="What is asked.")
    vector_db_ids: list[Id] | None = Field(default=None, max_length=16, description="The stores, by their names or ids.")
    vector_store_ids: list[Id] | None = Field(default=None, max_length=16, description="The newer name of vector_db_ids.")
    query_config: QueryConfig | None = Field(default=None, description="How.")


def parts_of(content: Any) -> list[str]:
    """The texts of a content that is text."""
    if isinstance(content, str):
        return [content]
    return [part.text for part in (content if isinstance(content, list) else [content])]
