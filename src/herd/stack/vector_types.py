"""What the routes of vector stores take: OpenAI's fields, and those that the Llama Stack adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from herd.stack.types import Lenient, Metadata, Wire, _few  # pyright: ignore[reportPrivateUsage]
from herd.tools.retrieval.chunking import DEFAULT_OVERLAP, DEFAULT_TOKENS, LEAST_TOKENS, MOST_TOKENS, Chunking
from herd.tools.retrieval.service import MAX_CHUNK_CHARS

MAX_FILES = 500
"""Files of one call, as OpenAI's."""
MAX_CHUNKS = 1000
LARGEST = 2**53
Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
AttributeValue = Annotated[str, StringConstraints(max_length=512)] | bool | Whole | Number
Attributes = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=64)], AttributeValue], BeforeValidator(_few), Field(max_length=16)
]
Filters = Annotated[dict[str, Any], BeforeValidator(_few)]


class ExpiresAfter(Wire):
    """When a store goes by itself."""

    anchor: Literal["last_active_at"] = Field(description="Days are counted from when the store was last used.")
    days: int = Field(ge=1, le=365, description="How many.")


class StaticChunking(Wire):
    """How files are cut."""

    max_chunk_size_tokens: int = Field(default=DEFAULT_TOKENS, ge=LEAST_TOKENS, le=MOST_TOKENS, description="Tokens of a passage at most.")
    chunk_overlap_tokens: int = Field(
        default=DEFAULT_OVERLAP, ge=0, le=MOST_TOKENS // 2, description="Tokens that it shares with the one before; half of it at most."
    )


class ChunkingStrategy(Wire):
    """auto: 800 tokens with 400 shared, or as much as the model reads; static: as given."""

    type: Literal["auto", "static"] = Field(description="auto or static.")
    static: StaticChunking | None = Field(default=None, description="With type static: the sizes.")

    def chosen(self, auto: Chunking) -> Chunking:
        """The sizes. Raises UsageError."""
        if self.type == "auto" or self.static is None:
            return auto
        return Chunking(max_tokens=self.static.max_chunk_size_tokens, overlap=self.static.chunk_overlap_tokens)


_CHUNKING = Field(default=None, description="How files are cut into passages.")


class VectorStoreBody(Wire):
    """POST /v1/vector_stores."""

    name: str | None = Field(default=None, max_length=256, description="A name for people.")
    description: str | None = Field(default=None, max_length=2048, description="What it is for; for people.")
    file_ids: list[Id] | None = Field(default=None, max_length=MAX_FILES, fail_fast=True, description="Files to put into it.")
    expires_after: ExpiresAfter | None = Field(default=None, description="When it goes by itself; never if left out.")
    chunking_strategy: ChunkingStrategy | None = _CHUNKING
    metadata: Metadata | None = Field(default=None, max_length=16, description="Kept and told.")
    embedding_model: str | None = Field(default=None, max_length=512, description="The Llama Stack's: has to be the model that is served.")
    embedding_dimension: int | None = Field(default=None, ge=1, le=2**20, description="The Llama Stack's: taken, and changes nothing.")
    provider_id: str | None = Field(default=None, max_length=256, description="The Llama Stack's: taken, and changes nothing.")


class VectorStoreChange(Wire):
    """POST /v1/vector_stores/{vector_store_id}."""

    name: str | None = Field(default=None, max_length=256, description="A name for people.")
    expires_after: ExpiresAfter | None = Field(default=None, description="When it goes by itself; null keeps it for good.")
    metadata: Metadata | None = Field(default=None, max_length=16, description="Kept and told, in place of what there was.")


class HybridWeights(Wire):
    """OpenAI's weights of the two rankings."""

    embedding_weight: float = Field(ge=0, le=1000, description="Of the ranking by vectors.")
    text_weight: float = Field(ge=0, le=1000, description="Of the ranking by words.")


class RankingOptions(Wire):
    """How results are ranked."""

    ranker: Literal["none", "auto", "default-2024-08-21", "default-2024-11-15", "rrf", "weighted"] | None = Field(
        default=None, description="weighted adds up scores; all others count reciprocal ranks."
    )
    score_threshold: float | None = Field(default=None, ge=0, le=1, description="Least score of a result.")
    hybrid_search: HybridWeights | None = Field(default=None, description="Weights of vectors and of words.")
    alpha: float | None = Field(default=None, ge=0, le=1, description="The Llama Stack's weight of vectors; words have the rest.")
    impact_factor: float | None = Field(default=None, gt=0, le=10_000, description="The Llama Stack's constant of reciprocal ranks.")


SearchMode = Literal["vector", "keyword", "hybrid"]


class VectorSearchBody(Wire):
    """POST /v1/vector_stores/{vector_store_id}/search."""

    query: (
        Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=16_384)]], Field(min_length=1, max_length=16, fail_fast=True)
        ]
    ) = Field(description="What to look for; of several queries a passage counts by the best.")
    filters: Filters | None = Field(default=None, description="Which files count, by their attributes.")
    max_num_results: int = Field(default=10, ge=1, le=50, description="Passages at most.")
    ranking_options: RankingOptions | None = Field(default=None, description="How they are ranked.")
    rewrite_query: bool = Field(default=False, description="Only false: queries are taken as they are.")
    search_mode: SearchMode = Field(default="hybrid", description="The Llama Stack's: by vectors, by words, or both.")


class VectorFileBody(Wire):
    """POST /v1/vector_stores/{vector_store_id}/files."""

    file_id: Id = Field(description="A file that was uploaded.")
    attributes: Attributes | None = Field(default=None, description="What filters see of it.")
    chunking_strategy: ChunkingStrategy | None = _CHUNKING


class VectorFileChange(Wire):
    """POST /v1/vector_stores/{vector_store_id}/files/{file_id}."""

    attributes: Attributes | None = Field(description="What filters see of it, in place of what there was.")


class FileBatchBody(Wire):
    """POST /v1/vector_stores/{vector_store_id}/file_batches: `file_ids` or `files`."""

    file_ids: list[Id] | None = Field(
        default=None, min_length=1, max_length=MAX_FILES, fail_fast=True, description="Files that share attributes."
    )
    files: list[VectorFileBody] | None = Field(
        default=None, min_length=1, max_length=MAX_FILES, fail_fast=True, description="Files with attributes of their own."
    )
    attributes: Attributes | None = Field(default=None, description="With `file_ids`: what filters see of each.")
    chunking_strategy: ChunkingStrategy | None = _CHUNKING


class ContentItem(Lenient):
    """A part of a passage."""

    type: Literal["text"] = Field(default="text", description="Only text can be kept.")
    text: str = Field(max_length=MAX_CHUNK_CHARS, description="The text.")


Content = Annotated[str, StringConstraints(max_length=MAX_CHUNK_CHARS)] | ContentItem | Annotated[list[ContentItem], Field(max_length=100)]


class Chunk(Lenient):
    """A passage of the Llama Stack."""

    content: Content = Field(description="Its text.")
    metadata: Filters = Field(
        default_factory=dict, description="Told with it; `document_id` names its document, plain values are filtered by."
    )
    chunk_id: str | None = Field(default=None, max_length=256, description="Its document's name, where the metadata has no `document_id`.")

    def text(self) -> str:
        """Its text as one."""
        if isinstance(self.content, str):
            return self.content
        items = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(item.text for item in items)


class VectorInsertBody(Wire):
    """POST /v1/vector-io/insert."""

    vector_store_id: Id | None = Field(default=None, description="The store.")
    vector_db_id: Id | None = Field(default=None, description="The older name of `vector_store_id`.")
    chunks: list[Chunk] = Field(min_length=1, max_length=MAX_CHUNKS, fail_fast=True, description="Passages.")
    ttl_seconds: int | None = Field(default=None, ge=1, le=2**31, description="Not supported: leave it out.")


class VectorQueryParams(Lenient):
    """How to search."""

    mode: SearchMode = Field(default="hybrid", description="By vectors, by words, or both.")
    max_chunks: int = Field(default=5, ge=1, le=50, description="Passages at most.")
    score_threshold: float | None = Field(default=None, ge=0, le=1, description="Least score of a result.")
    filters: Filters | None = Field(default=None, description="Which passages count, by their metadata.")


class VectorQueryBody(Wire):
    """POST /v1/vector-io/query."""

    vector_store_id: Id | None = Field(default=None, description="The store.")
    vector_db_id: Id | None = Field(default=None, description="The older name of `vector_store_id`.")
    query: Content = Field(description="What to look for.")
    params: VectorQueryParams | None = Field(default=None, description="How.")


class VectorDbBody(Wire):
    """POST /v1/vector-dbs, of llama-stack-client up to 0.2."""

    vector_db_id: Id = Field(description="The name that the store is called by.")
    embedding_model: str | None = Field(default=None, max_length=512, description="Has to be the model that is served.")
    embedding_dimension: int | None = Field(default=None, ge=1, le=2**20, description="Taken, and changes nothing.")
    provider_id: str | None = Field(default=None, max_length=256, description="Taken, and changes nothing.")
    provider_vector_db_id: str | None = Field(default=None, max_length=256, description="Taken, and changes nothing.")
    vector_db_name: str | None = Field(default=None, max_length=256, description="A name for people.")
