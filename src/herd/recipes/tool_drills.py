"""Drills of tool calls: a request, the tools on offer, the call in Llama 3.1's format, what it gave and the answer made of it.

A pure function of the seed. Every record offers one to three tools, the right one among them, in a random order and under one of several
names, so that a model learns to read the definitions and to copy arguments out of the request; some requests need no tool. Templates and
values are split: those of `held_back_calls` never stand in training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from herd.data.records import Record
from herd.recipes.copy_drills import any_words

_HELD_BACK = 5
"""Of every so many values or templates the last is held back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tool:
    """A kind of tool.

    `names` are what it may be called; `fields` its parameters with type and description; `asks` templates of requests over `values`;
    `result` and `answer` are made of the arguments.
    """

    names: tuple[str, ...]
    description: str
    fields: tuple[tuple[str, str, str], ...]
    asks: tuple[str, ...]
    values: Callable[[random.Random, bool], dict[str, Any]]
    result: Callable[[random.Random, dict[str, Any]], dict[str, Any]]
    answer: str


def _split(values: Sequence[str], held_back: bool) -> list[str]:
    """Those of training, or those that are held back."""
    return [value for place, value in enumerate(values) if (place % _HELD_BACK == _HELD_BACK - 1) == held_back]


def _list(text: str) -> list[str]:
    return text.split(",")


_CITIES = _list(
    "Paris,London,Berlin,Rome,Madrid,Lisbon,Vienna,Oslo,Athens,Dublin,Cairo,Nairobi,Delhi,Mumbai,Bangkok,Tokyo,Seoul,Lima,Quito,Boston,"
    "Chicago,Denver,Toronto,Sydney,Perth,Hanoi,Warsaw,Prague,Milan,Naples,Porto,Lyon,Hamburg,Munich,Zurich,Geneva,Oxford,Leeds,Austin,Dallas"
)
_PEOPLE = _list("Anna,Ben,Carla,David,Emma,Finn,Grace,Hugo,Ida,Jonas,Kim,Leo,Maya,Noah,Olga,Pablo,Rosa,Sam,Tara,Yusuf")
_SONGS = _list(
    "Blue River,Morning Light,Dancing Rain,Old Road,Silver Moon,Summer Wind,Little Star,Golden Hour,Paper Boats,Night Train,Green Hills,"
    "Winter Song,Red Balloon,Quiet Sea,City Birds"
)
_ROOMS = _list("kitchen,bedroom,hall,garden,office,bathroom,garage,cellar,attic,living room")
_WORDS = _list("house,tree,friend,water,bread,music,school,window,garden,morning,river,book,horse,apple,winter")
_LANGUAGES = _list("German,French,Italian,Portuguese,Hindi,Spanish,Thai,Polish,Dutch,Greek")
_TASKS = _list(
    "buy milk,call the doctor,water the plants,send the letter,feed the cat,pay the rent,clean the car,book a hotel,write the report,"
    "pick up the keys,return the books,order a cake,fix the bike,wash the windows,visit grandma"
)
_COINS = _list("dollars,euros,pounds,yen,rupees,baht,francs,crowns,pesos,reais")
_TOPICS = _list(
    "black holes,the history of tea,how bees make honey,Roman roads,volcanoes,electric cars,the moon landing,coral reefs,solar energy,"
    "chess openings,wild wolves,the Nile,ancient Greece,healthy breakfasts,penguins"
)
_MESSAGES = _list(
    "I am late,See you soon,Happy birthday,Call me back,I am at home,Good luck,Dinner is ready,Thank you,I miss you,On my way"
)
_TIMES = _list("7 am,8 am,9:30 am,noon,3 pm,5 pm,6:15 pm,8 pm,9 pm,midnight")


def _pick(values: Sequence[str]) -> Callable[[random.Random, bool], str]:
    """A value of the list; in training three times of five any words at all, so that what is learned is to copy."""
    kept = set(_split(values, True))

    def make(rng: random.Random, held_back: bool) -> str:
        if held_back or rng.random() < 2 / 5:
            return rng.choice(_split(values, held_back))
        while (words := any_words(rng, rng.choice(values))) in kept:
            pass
        return words

    return make


def _one(**makers: Callable[[random.Random, bool], Any]) -> Callable[[random.Random, bool], dict[str, Any]]:
    return lambda rng, held_back: {name: make(rng, held_back) for name, make in makers.items()}


def _number(least: int, most: int) -> Callable[[random.Random, bool], int]:
    """Held-back numbers are those that end in 7."""

    def make(rng: random.Random, held_back: bool) -> int:
        while ((value := rng.randint(least, most)) % 10 == 7) != held_back:
            pass
        return value

    return make


def _said(**makers: Callable[[random.Random], Any]) -> Callable[[random.Random, dict[str, Any]], dict[str, Any]]:
    return lambda rng, _: {name: make(rng) for name, make in makers.items()}


_TOOLS = (
    _Tool(
        names=("get_weather", "weather", "current_weather", "weather_lookup"),
        description="Get the weather in a city",
        fields=(("city", "string", "The name of the city"),),
        asks=(
            *("What is the weather in {city}?", "How is the weather in {city} today?", "Will it rain in {city}?"),
            *("Tell me the weather in {city}.", "Do I need a coat in {city}?", "weather {city}", "Is it warm in {city} now?"),
            *("Check the weather in {city}, please.", "What's it like outside in {city}?", "Is the sun shining in {city}?"),
        ),
        values=_one(city=_pick(_CITIES)),
        result=_said(sky=lambda rng: rng.choice(("sunny", "cloudy", "rainy", "windy")), degrees=lambda rng: rng.randint(-5, 35)),
        answer="It is {sky} in {city}, with {degrees} degrees.",
    ),
    _Tool(
        names=("set_timer", "start_timer", "timer"),
        description="Start a timer",
        fields=(("minutes", "integer", "How many minutes it runs"),),
        asks=(
            *("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes."),
            *("Timer for {minutes} minutes, please.", "Can you count down {minutes} minutes?", "Tell me when {minutes} minutes are over."),
        ),
        values=_one(minutes=_number(1, 90)),
        result=_said(state=lambda _: "running"),
        answer="The timer runs for {minutes} minutes.",
    ),
    _Tool(
        names=("calculate", "calculator", "add_numbers"),
        description="Add two numbers",
        fields=(("a", "integer", "The first number"), ("b", "integer", "The second number")),
        asks=(
            *("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} and {b} together?", "{a} + {b}"),
            *("Please work out {a} plus {b}.", "Sum up {a} and {b}."),
        ),
        values=_one(a=_number(100, 999), b=_number(100, 999)),
        result=lambda _, given: {"sum": given["a"] + given["b"]},
        answer="{a} plus {b} is {sum}.",
    ),
    _Tool(
        names=("play_music", "play_song", "music_player"),
        description="Play a song",
        fields=(("song", "string", "The title of the song"),),
        asks=(
            *("Play {song}.", "I want to hear {song}.", "Can you play {song} for me?", "Put on the song {song}."),
            *("Let me listen to {song}.", "Play the song {song}, please."),
        ),
        values=_one(song=_pick(_SONGS)),
        result=_said(state=lambda _: "playing"),
        answer="Now playing {song}.",
    ),
    _Tool(
        names=("switch_light", "set_light", "light_control"),
        description="Turn a light on or off",
        fields=(("room", "string", "The room of the light"), ("state", "string", "on or off")),
        asks=(
            *("Turn {state} the light in the {room}.", "Switch {state} the {room} light.", "Light {state} in the {room}, please."),
            *("Can you turn the {room} light {state}?", "I want the light in the {room} {state}."),
        ),
        values=_one(room=_pick(_ROOMS), state=lambda rng, _: rng.choice(("on", "off"))),
        result=_said(done=lambda _: True),
        answer="The light in the {room} is {state}.",
    ),
    _Tool(
        names=("translate", "translate_word", "translator"),
        description="Translate a word",
        fields=(("word", "string", "The word to translate"), ("language", "string", "The language to translate it into")),
        asks=(
            *("What is {word} in {language}?", "Translate {word} into {language}.", "How do you say {word} in {language}?"),
            *("Tell me the {language} word for {word}.", "I need {word} in {language}."),
        ),
        values=_one(word=_pick(_WORDS), language=_pick(_LANGUAGES)),
        result=_said(found=lambda rng: "".join(rng.choice(("ba", "lo", "mi", "te", "ra", "su", "no")) for _ in range(3))),
        answer="{word} is {found} in {language}.",
    ),
    _Tool(
        names=("add_reminder", "create_reminder", "remind"),
        description="Remember a task at a time",
        fields=(("task", "string", "What to do"), ("time", "string", "When")),
        asks=(
            *("Remind me to {task} at {time}.", "At {time} I have to {task}, remind me.", "Set a reminder to {task} at {time}."),
            *("Please remind me at {time} to {task}.", "Don't let me forget to {task} at {time}."),
        ),
        values=_one(task=_pick(_TASKS), time=_pick(_TIMES)),
        result=_said(saved=lambda _: True),
        answer="I will remind you to {task} at {time}.",
    ),
    _Tool(
        names=("convert_money", "exchange", "currency_converter"),
        description="Convert an amount of money",
        fields=(
            ("amount", "integer", "How much"),
            ("source", "string", "The currency that it is in"),
            ("target", "string", "The currency that is wanted"),
        ),
        asks=(
            *("How many {target} are {amount} {source}?", "Convert {amount} {source} to {target}.", "{amount} {source} in {target}"),
            *("Change {amount} {source} into {target}.", "What are {amount} {source} in {target}?"),
        ),
        values=_one(amount=_number(2, 500), source=_pick(_COINS[:5]), target=_pick(_COINS[5:])),
        result=_said(value=lambda rng: rng.randint(2, 900)),
        answer="{amount} {source} are {value} {target}.",
    ),
    _Tool(
        names=("web_search", "search", "search_web"),
        description="Search the web",
        fields=(("query", "string", "What to search for"),),
        asks=(
            *("Search for {query}.", "Look up {query}.", "Find something about {query}.", "What can you find about {query}?"),
            *("Search the web for {query}, please.", "I want to read about {query}."),
        ),
        values=_one(query=_pick(_TOPICS)),
        result=_said(pages=lambda rng: rng.randint(2, 9)),
        answer="I found {pages} pages about {query}.",
    ),
    _Tool(
        names=("send_message", "text_person", "message"),
        description="Send a message to a person",
        fields=(("person", "string", "Who gets it"), ("text", "string", "What it says")),
        asks=(
            *('Tell {person}: "{text}"', 'Send {person} the message "{text}"', 'Write to {person}: "{text}"'),
            *('Message {person}: "{text}"', 'Let {person} know: "{text}"'),
        ),
        values=_one(
            person=_pick(_PEOPLE),
            text=_pick(_MESSAGES),
        ),
        result=_said(sent=lambda _: True),
        answer="I sent it to {person}.",
    ),
)
_SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Who are you?", "I am cria, a small language model."),
    ("Thank you!", "You are welcome!"),
    ("Good night.", "Good night! Sleep well."),
    ("How are you?", "I am fine, thank you. What can I do for you?"),
    ("Tell me a joke.", "Why did the llama cross the road? To prove that it was no chicken."),
)


def _definition(tool: _Tool, name: str) -> dict[str, Any]:
    properties = {field: {"type": kind, "description": told} for field, kind, told in tool.fields}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": tool.description, "parameters": parameters}}


def _offer(rng: random.Random, tool: _Tool, name: str, most: int) -> list[dict[str, Any]]:
    """The tool among others, in a random order."""
    others = rng.sample([other for other in _TOOLS if other is not tool], rng.randint(0, most - 1))
    offered = [_definition(tool, name), *(_definition(other, rng.choice(other.names)) for other in others)]
    rng.shuffle(offered)
    return offered


def tool_drills(seed: int, count: int) -> Iterator[Record]:
    """`count` dialogues with tools, the same for the same seed."""
    rng = random.Random(f"tool drills/{seed}")
    for _ in range(count):
        tool = rng.choice(_TOOLS)
        name = rng.choice(tool.names)
        tools = _offer(rng, tool, name, most=3)
        if rng.random() < 0.12:
            question, answer = rng.choice(_SMALL_TALK)
            yield {"lang": "en", "tools": tools, "messages": _turns(question, answer)}
            continue
        given = tool.values(rng, False)
        question = rng.choice(_split(tool.asks, False)).format(**given)
        found = tool.result(rng, given)
        call = {"function": {"name": name, "arguments": json.dumps(given)}}
        yield {
            "lang": "en",
            "tools": tools,
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": json.dumps(found)},
                {"role": "assistant", "content": tool.answer.format(**given, **found)},
            ],
        }


def _turns(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldBackCall:
    """A request that never stands in training, the tools on offer and the call that is right."""

    question: str
    tools: list[dict[str, Any]]
    name: str
    arguments: dict[str, Any]


def held_back_calls(count: int, *, seed: int = 0) -> list[HeldBackCall]:
    """Requests from held-back templates over held-back values, the tools in turn, two on offer each time."""
    rng = random.Random(f"held-back calls/{seed}")
    calls: list[HeldBackCall] = []
    for number in range(count):
        tool = _TOOLS[number % len(_TOOLS)]
        name = rng.choice(tool.names)
        given = tool.values(rng, True)
        question = rng.choice(_split(tool.asks, True)).format(**given)
        calls.append(HeldBackCall(question=question, tools=_offer(rng, tool, name, most=2), name=name, arguments=given))
    return calls
