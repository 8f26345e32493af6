"""What OpenAI's routes take, field by field: described, bounded, and strict about types. Unknown fields are refused by name.

Bounds here are the widest that mean anything; `config.Caps` narrows some of them. Source: OpenAI's API reference, and the fields that vLLM
adds to it (top_k, min_p, stop_token_ids, ...). Fields that steer OpenAI's own service are taken and change nothing; their text says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

MAX_INT = 2**53
MAX_TOKENS = 2**31
MAX_TEXT = 2**24
"""Characters of any text: what the longest body could hold."""
MAX_IDS = 2**20
MAX_FIELDS = 1024
"""Fields of an object at most: over that, none is looked at."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
# The first thing that is wrong in a list ends the reading of it: to tell a million of them would take the memory of a million.
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
_SEED = Field(default=None, ge=-(2**63), lt=2**63, description="The same seed, prompt and parameters give the same answer.")


def _few(value: Any) -> Any:
    """Refuses an object of too many fields before any of them is looked at."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"there are {len(value):,} fields, the most is {MAX_FIELDS:,}")
    return value


class Wire(BaseModel):
    """Base of everything that comes in."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, regex_engine="rust-regex")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        return _few(data)


class Lenient(BaseModel):
    """Base of parts whose other fields belong to the client."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]], BeforeValidator(_few)
]


class TextContent(Lenient):
    """A part of a message."""

    type: Literal["text"] = Field(description="Only text can be read.")
    text: Text = Field(description="The text.")


class FunctionCall(Lenient):
    """Which function was called, with what."""

    name: str = Field(max_length=256, description="The function's name.")
    arguments: Text = Field(description="The arguments as JSON text.")


class ToolCallIn(Lenient):
    """A call that the assistant made earlier."""

    id: str | None = Field(default=None, max_length=256, description="Its id.")
    type: Literal["function"] = Field(default="function", description="Always function.")
    function: FunctionCall = Field(description="What was called.")


class ChatMessage(Lenient):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "ipython"] = Field(description="Who says it.")
    content: Text | Annotated[list[TextContent], Field(max_length=4096, fail_fast=True)] | None = Field(
        default=None, description="What is said."
    )
    name: str | None = Field(default=None, max_length=256, description="On a tool's message, the tool's name.")
    tool_calls: list[ToolCallIn] | None = Field(default=None, max_length=128, fail_fast=True, description="Calls that the assistant made.")
    tool_call_id: str | None = Field(default=None, max_length=256, description="On a tool's message, the call that it answers.")


class FunctionTool(Lenient):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=128, description="Its name.")
    description: Text | None = Field(default=None, description="What it does; the model reads this.")
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of its arguments. Calls always fit it.")
    strict: bool | None = Field(default=None, description="Calls fit the schema in any case.")


class Tool(Lenient):
    """A tool on offer."""

    type: Literal["function"] = Field(description="Always function.")
    function: FunctionTool = Field(description="The function.")


class NamedFunction(Lenient):
    """A function by name."""

    name: str = Field(min_length=1, max_length=128, description="Its name.")


class NamedTool(Lenient):
    """The tool that has to be called."""

    type: Literal["function"] = Field(default="function", description="Always function.")
    function: NamedFunction = Field(description="The function.")


class JsonSchema(Lenient):
    """A JSON schema that the answer has to fit."""

    name: str | None = Field(default=None, max_length=256, description="A name for it.")
    description: Text | None = Field(default=None, description="What it is for; not shown to the model.")
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema", description="The schema.")
    strict: bool | None = Field(default=None, description="The schema is followed in any case.")


class ResponseFormat(Lenient):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Free text, any JSON object, or JSON of a schema.")
    json_schema: JsonSchema | None = Field(default=None, description="With type json_schema: the schema.")


class StreamOptions(Lenient):
    """What a stream tells."""

    include_usage: bool = Field(default=False, description="A last chunk with the number of tokens.")
    continuous_usage_stats: bool = Field(default=False, description="Taken, and changes nothing.")


class StructuredOutputs(Wire):
    """What the answer has to look like, in other languages than JSON schema; exactly one of them."""

    json_: dict[str, Any] | bool | Text | None = Field(default=None, alias="json", description="A JSON schema.")
    regex: Text | None = Field(default=None, description="A regular expression in Rust's syntax.")
    choice: list[Text] | None = Field(default=None, max_length=10_000, fail_fast=True, description="One of these texts.")
    grammar: Text | None = Field(default=None, description="A context-free grammar in Lark's syntax, or in llama.cpp's.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")
    whitespace: int = Field(default=0, ge=0, le=16, description="White space characters allowed between JSON's own.")


class Sampling(Wire):
    """Fields that both kinds of completion share."""

    model: str = Field(default="", max_length=512, description="The model's name, as /v1/models lists it; empty is the one that is served.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 takes the likeliest token every time. Default 0.6.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Tokens are kept up to this mass, likeliest first. Default 0.9.")
    top_k: int | None = Field(default=None, ge=-1, le=MAX_INT, description="Keep this many of the likeliest; 0 or -1 keeps all.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Drop tokens below this share of the likeliest one's probability.")
    typical_p: float | None = Field(default=None, gt=0, le=1, description="Locally typical sampling, up to this mass; 1 is off.")
    repetition_penalty: float | None = Field(default=None, gt=0, le=100, description="Of tokens in prompt or answer; 1 is off.")
    presence_penalty: float | None = Field(default=None, ge=-100, le=100, description="Taken once from tokens of the answer.")
    frequency_penalty: float | None = Field(default=None, ge=-100, le=100, description="Taken for each time a token stands in the answer.")
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-1000, le=1000)]], BeforeValidator(_few)] | None = Field(
        default=None, max_length=1024, description="Added to the scores of token ids."
    )
    allowed_token_ids: list[TokenId] | None = Field(
        default=None, min_length=1, max_length=262_144, fail_fast=True, description="Only these tokens can come."
    )
    banned_token_ids: list[TokenId] | None = Field(
        default=None, max_length=262_144, fail_fast=True, description="These tokens cannot come."
    )
    seed: int | None = _SEED
    n: int | None = Field(default=None, ge=1, le=256, description="Answers of one prompt.")
    min_tokens: int | None = Field(
        default=None, ge=0, le=MAX_TOKENS, description="The answer does not end by itself before so many tokens."
    )
    stop: Text | Annotated[list[Text], Field(max_length=1024, fail_fast=True)] | None = Field(
        default=None, description="Texts that end the answer."
    )
    stop_token_ids: list[TokenId] | None = Field(
        default=None, max_length=1024, fail_fast=True, description="Token ids that end the answer, besides the model's own."
    )
    include_stop_str_in_output: bool | None = Field(default=None, description="Keep the stop text that ended the answer.")
    ignore_eos: bool | None = Field(default=None, description="Go on over the model's own end tokens.")
    stream: bool | None = Field(default=None, description="Send the answer as it is written, as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="What a stream tells.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="What the answer has to look like.")
    priority: int | None = Field(default=None, ge=-1000, le=1000, description="Lower goes first, not before what the key allows.")
    cache_salt: str | None = Field(default=None, max_length=256, description="Cached prefixes are shared within one salt of one key.")
    return_token_ids: bool | None = Field(default=None, description="Tell the ids of prompt and answer.")
    receipt: bool | None = Field(
        default=None, description="Tell all that the answer depends on; `herd replay` makes it again, bit for bit."
    )
    user: str | None = Field(default=None, max_length=512, description="Taken, and changes nothing.")

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name in value or ():
            if not (name.isascii() and name.isdecimal() and len(name) <= 10):
                raise ValueError(f"{name!r:.40} is not a token id")
        return value


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000, fail_fast=True, description="The conversation.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS, description="New tokens at most; default: up to the context."
    )
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="The older name of max_completion_tokens.")
    logprobs: bool | None = Field(default=None, description="Tell the log-probability of each token.")
    top_logprobs: int | None = Field(default=None, ge=0, le=128, description="And of so many likeliest others.")
    tools: list[Tool] | None = Field(default=None, max_length=1024, fail_fast=True, description="What the model may call.")
    builtin_tools: list[Literal["brave_search", "wolfram_alpha", "photogen", "code_interpreter"]] | None = Field(
        default=None, max_length=4, description="Tools that Llama 3.1 knows by name."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None, description="Whether a tool has to be called."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether one answer may hold several calls. Default true.")
    response_format: ResponseFormat | None = Field(default=None, description="What the answer has to look like.")
    metadata: Metadata | None = Field(default=None, max_length=16, description="With `store`: kept, told, and lists are filtered by it.")
    store: bool | None = Field(default=None, description="Keep the answer for 30 days; GET /v1/chat/completions/{id} tells it again.")
    service_tier: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    reasoning_effort: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    verbosity: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    safety_identifier: str | None = Field(default=None, max_length=512, description="Taken, and changes nothing.")
    prompt_cache_key: str | None = Field(default=None, max_length=512, description="Taken, and changes nothing: prefixes are found anyway.")
    modalities: list[Literal["text"]] | None = Field(default=None, max_length=1, description="Only text.")


class StoredCompletionBody(Wire):
    """POST /v1/chat/completions/{completion_id}."""

    metadata: Metadata | None = Field(max_length=16, description="In place of what was there.")


Texts = Annotated[list[Text], Field(max_length=65_536, fail_fast=True)]
Prompts = Annotated[list[TokenIds], Field(max_length=65_536, fail_fast=True)]


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: Text | TokenIds | Texts | Prompts = Field(description="A text, its token ids, or a list of either.")
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS, description="New tokens at most; default 16, as OpenAI's.")
    best_of: int | None = Field(default=None, ge=1, le=256, description="Write so many, give the n likeliest.")
    echo: bool | None = Field(default=None, description="Begin with the prompt.")
    logprobs: int | None = Field(default=None, ge=0, le=128, description="Tell the log-probability of each token and so many likeliest.")
    suffix: str | None = Field(default=None, max_length=0, description="Not supported: this family does not fill in the middle.")


class EmbeddingBody(Wire):
    """POST /v1/embeddings."""

    model: str = Field(default="", max_length=512, description="The model's name.")
    input: Text | TokenIds | Texts | Prompts = Field(description="A text, its token ids, or a list of either.")
    encoding_format: Literal["float", "base64"] = Field(default="float", description="Numbers, or float32 in base64.")
    dimensions: int | None = Field(default=None, ge=1, le=MAX_INT, description="Keep the first so many, made unit length again.")
    pooling: Literal["mean", "last"] = Field(default="mean", description="Of the last hidden states: their mean, or the last one.")
    user: str | None = Field(default=None, max_length=512, description="Taken, and changes nothing.")


class BatchBody(Wire):
    """POST /v1/batches."""

    input_file_id: str = Field(max_length=100, description="A file that was uploaded with purpose `batch`.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] = Field(description="What every line asks for.")
    completion_window: str = Field(max_length=5, pattern=r"^[1-9][0-9]{0,3}h$", description="Hours until it ends, done or not: 24h.")
    metadata: Metadata | None = Field(default=None, max_length=16, description="Kept and told.")


class TokenizeBody(Wire):
    """POST /tokenize: a text, or a conversation as the model sees it."""

    model: str = Field(default="", max_length=512, description="The model's name.")
    prompt: Text | None = Field(default=None, description="A text.")
    messages: list[ChatMessage] | None = Field(default=None, max_length=10_000, fail_fast=True, description="A conversation.")
    tools: list[Tool] | None = Field(default=None, max_length=1024, fail_fast=True, description="Tools on offer in the conversation.")
    add_special_tokens: bool = Field(default=True, description="Begin a text with <|begin_of_text|>.")
    add_generation_prompt: bool = Field(default=True, description="End a conversation with the assistant's header.")
    return_token_strs: bool = Field(default=False, description="Tell the text of each token too.")


class DetokenizeBody(Wire):
    """POST /detokenize."""

    model: str = Field(default="", max_length=512, description="The model's name.")
    tokens: TokenIds = Field(description="Token ids.")
