"""Utterances labelled with an intent and slots, as the SNIPS set has them, made into dialogues of one tool call.

Each becomes a user's message and a call of the intent with the slots as arguments; the tools on offer are that one and one or two others,
in an order that a digest of the utterance decides, so that a model learns to choose. Parameters of an intent are the slots that the set
uses for it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from herd.base.errors import FormatError
from herd.data.records import Record

INTENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "AddToPlaylist": ("Add music to a playlist", ("playlist", "playlist_owner", "music_item", "artist", "entity_name")),
    "BookRestaurant": (
        "Book a table in a restaurant",
        (
            *("restaurant_name", "restaurant_type", "cuisine", "served_dish", "facility", "sort", "party_size_number"),
            *("party_size_description", "timeRange", "spatial_relation", "poi", "city", "state", "country"),
        ),
    ),
    "GetWeather": (
        "Get the weather forecast",
        (
            *("city", "state", "country", "timeRange", "condition_description", "condition_temperature"),
            *("geographic_poi", "spatial_relation", "current_location"),
        ),
    ),
    "PlayMusic": ("Play music", ("music_item", "track", "artist", "album", "genre", "year", "playlist", "service", "sort")),
    "RateBook": (
        "Rate a book",
        (
            *("object_name", "object_type", "object_select", "object_part_of_series_type"),
            *("rating_value", "best_rating", "rating_unit"),
        ),
    ),
    "SearchCreativeWork": ("Find a creative work by its name", ("object_name", "object_type")),
    "SearchScreeningEvent": (
        "Find when and where films are shown",
        ("movie_name", "movie_type", "object_type", "object_location_type", "location_name", "timeRange", "spatial_relation"),
    ),
}


def is_intent(record: Record) -> bool:
    """Whether a record is an utterance with an intent and slots."""
    return isinstance(record.get("intent"), str) and isinstance(record.get("slots"), list) and isinstance(record.get("text"), str)


def tool_of(name: str) -> dict[str, Any]:
    """The definition of an intent as a tool."""
    description, slots = INTENTS[name]
    properties = {slot: {"type": "string", "description": slot.replace("_", " ")} for slot in slots}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def intent_record(record: Record) -> Record:
    """The dialogue of a labelled utterance. Raises FormatError for an intent that is not known, or slots of another shape."""
    intent, text = record["intent"], record["text"]
    if intent not in INTENTS:
        raise FormatError(f"unknown intent {intent!r}", hint="intents: " + ", ".join(INTENTS))
    arguments: dict[str, str] = {}
    for slot in record["slots"]:
        if not isinstance(slot, list) or len(slot) != 2 or not all(isinstance(part, str) for part in slot):
            raise FormatError(f"a slot is {str(slot)[:60]}", hint="a slot is a name and a text")
        arguments[slot[0]] = f"{arguments[slot[0]]}, {slot[1]}" if slot[0] in arguments else slot[1]
    call = {"function": {"name": intent, "arguments": arguments}}
    messages = [{"role": "user", "content": text}, {"role": "assistant", "tool_calls": [call]}]
    return {"messages": messages, "tools": [tool_of(name) for name in _offered(intent, text)]}


def _offered(intent: str, text: str) -> list[str]:
    """The intent and one or two others, in an order of their own."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    others = sorted((name for name in INTENTS if name != intent), key=lambda name: hashlib.blake2b(digest + name.encode()).digest())
    names = [intent, *others[: 1 + digest[0] % 2]]
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode() + digest).digest())
