"""Keys, values, people and places that workloads ask about: drawn without repeats, and enough for any length."""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Final, Literal

from probe.errors import UsageError

Kind = Literal["words", "numbers", "uuids"]
"""What a key or a value is: `amber-anchor`, `7201936`, or a UUID of version 4."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHORT_TOKENS: Final = 512
"""Length below which keys and values are numbers unless said otherwise: two pairs of UUIDs take 100 tokens and more."""


def kind_for(kind: Kind | None, length: int) -> Kind:
    """Return the kind that was asked for, or UUIDs, or numbers where a prompt has fewer than 512 tokens."""
    return kind or ("numbers" if length < SHORT_TOKENS else "uuids")


ADJECTIVES: Final[tuple[str, ...]] = _words(
    """amber ancient arctic autumn azure bitter blazing brave bright bronze calm careful cheerful clever cold copper
    cosmic crimson crisp curious daring dawn deep dusty eager early electric elegant emerald endless faint fancy
    fearless fierce floral fluffy foggy fragile frozen gentle giant gilded glad gloomy golden graceful grand green
    happy hidden hollow honest humble icy idle indigo ivory jolly keen kind lavish lazy leafy lively lone loyal
    lucky lunar marble mellow mighty misty modest mossy muddy neat noble odd opal orange pale patient pink placid
    plain polite proud purple quick quiet rapid rare royal rugged rustic salty scarlet secret shady sharp shiny
    silent silver simple sleepy slim smooth snowy solar solid sour spotted steady stormy sturdy subtle sunny sweet
    swift tame tender tidy tiny vast velvet violet vivid wandering weary wild windy wise witty woven young zesty"""
)
"""First half of a word key."""

NOUNS: Final[tuple[str, ...]] = _words(
    """acorn anchor antler apron arrow badge bamboo banjo barley barrel beacon beetle bell berry bison blossom bonfire
    bottle boulder bramble brook bubble bugle cabin cactus camel canal candle canoe canyon carpet castle cavern
    cedar cello chapel cherry chisel clover cobalt comet compass coral cottage cradle crane cricket crystal daisy
    delta desert diamond dolphin dragon drum dune eagle ember engine falcon feather fern fiddle flint flute forest
    fossil fountain galaxy garnet geyser ginger glacier goblet granite grove guitar hammock harbor harvest hazel
    heron honey horizon iceberg island ivy jacket jasmine jungle kettle kite ladder lagoon lantern lemon lily lizard
    lobster locket lotus magnet mango maple marsh meadow meteor mirror mitten monsoon moss mountain mushroom needle
    nest nutmeg oasis ocean olive onion orchid otter oyster paddle panther parrot pebble pelican pepper piano pillow
    pine pistol planet plaza plum pocket pony poppy prairie puddle pumpkin quarry quartz quill rabbit raccoon raft
    rainbow raven reef ribbon ridge river robin rocket saddle saffron salmon sapphire satchel seal shadow shell
    shovel signal spruce squid stable starling statue stream summit sunset swan table teapot temple thicket thistle
    thunder tiger timber trumpet tulip tunnel turtle valley vessel village vine violin volcano wagon walnut walrus
    waterfall whale wheel willow window wolf yacht zebra"""
)
"""Second half of a word key, and the words of word lists."""

FIRST_NAMES: Final[tuple[str, ...]] = _words(
    """Ada Adam Agnes Alan Alice Amelia Amos Anna Arthur Basil Beatrice Bruno Carl Cecilia Clara Claude Conrad Cora
    Daniel Daphne David Delia Dora Edgar Edith Edmund Elena Eliza Emil Emma Ernest Esther Eva Felix Fiona Flora
    Frances Frank Freda George Gerda Gilbert Grace Gustav Hannah Harold Hazel Helen Henry Hilda Hugo Ida Igor Ingrid
    Irene Isaac Iris Ivan Jacob James Jane Joan Jonas Joseph Judith Julia Karl Kate Laura Lena Leo Lewis Lily Louis
    Lucy Lydia Magnus Marcus Maria Martha Martin Max Mira Miriam Nadia Nathan Nina Nora Olga Oliver Oscar Otto
    Pamela Paul Peter Philip Rachel Ralph Rita Robert Rosa Rudolf Ruth Samuel Sara Simon Sofia Stella Theo Thomas
    Ursula Vera Victor Viola Walter Wanda Wilma Yvonne Zoe"""
)
"""Given names of invented people."""

LAST_NAMES: Final[tuple[str, ...]] = _words(
    """Abbott Ainsley Alder Archer Ashby Atwood Baird Barlow Baxter Beckett Bellamy Benson Birch Blake Bolton Bowen
    Bradley Brandt Briggs Burton Calder Carver Chandler Clifton Coleman Corbin Cowan Crosby Dalton Darby Dawson
    Delaney Dixon Donovan Drake Dunbar Easton Eldridge Ellery Emerson Everett Fairfax Farrell Fenton Fisher Fleming
    Forster Fraser Garrison Gibson Goddard Graham Granger Griffin Hadley Hammond Harding Hartley Hawkins Hayden
    Holden Hollis Horton Hudson Ingram Irving Jarvis Jennings Keating Kendall Kirby Lambert Langley Latham Lawson
    Lindley Lockwood Lowell Maddox Marlow Mercer Merritt Milton Monroe Morland Nash Newell Norton Oakley Osborne
    Palmer Parrish Pembroke Porter Prescott Preston Quincy Radley Ramsey Redmond Rhodes Ridley Rowland Salter Sawyer
    Sheldon Sinclair Somers Spencer Stanton Sterling Sutton Talbot Tanner Thorne Thurston Tilden Travers Underhill
    Vance Vaughn Wallace Warren Webster Weston Whitman Wilder Winslow Woodward Wyatt Yardley Yates"""
)
"""Family names of invented people; none is a first name or a word of the list."""

_PLACES_BEFORE = _words(
    """Al Ash Bal Bar Bel Bram Bren Cal Car Col Dar Dor Dun El Fal Fen Gar Glen Hal Har Holm Il Kel Kin Lan Lor Mal Mar
    Mor Nor Os Pel Quar Ros Sel Stan Tal Thorn Ul Var Ven Wal Wen Wil Wyn Yar"""
)
_PLACES_BETWEEN = ("a", "en", "er", "i", "in", "o", "on", "ing", "ar", "el")
_PLACES_AFTER = _words(
    """bridge burn by dale den field ford gate ham hurst ley mere mont more mouth port shaw stead stow ton vale well
    wick wood worth"""
)


class Drawn:
    """Names drawn one after another, none twice: more of them begin with the same ones."""

    def __init__(self, source: Iterable[str]) -> None:
        self._source = iter(source)
        self._known: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for at in count():
            if len(found := self.first(at + 1)) <= at:
                return
            yield found[at]

    def first(self, count: int) -> list[str]:
        """Return the first `count` of them; raises UsageError where there are not so many."""
        self._known += islice(self._source, max(0, count - len(self._known)))
        return self._known[:count]


def values(rng: random.Random, kind: Kind, *, digits: int = 7, without: Collection[str] = ()) -> Drawn:
    """Draw different keys or values of a kind, none of those in `without`."""
    if kind == "uuids":
        source: Iterator[str] = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in count())
    elif kind == "numbers":
        first = 10 ** (digits - 1)
        source = (str(first + at) for at in _indices(rng, 9 * first, f"numbers of {digits} digits"))
    else:
        source = _pairs(rng, ADJECTIVES, NOUNS, "-", "word keys")
    return Drawn(value for value in source if value not in without)


def people(rng: random.Random) -> Drawn:
    """Draw different full names."""
    return Drawn(_pairs(rng, FIRST_NAMES, LAST_NAMES, " ", "names of people"))


def places(rng: random.Random) -> Drawn:
    """Draw different invented names of places."""
    ends = [between + after for between in _PLACES_BETWEEN for after in _PLACES_AFTER]
    return Drawn(_pairs(rng, _PLACES_BEFORE, ends, "", "names of places"))


def _pairs(rng: random.Random, first: Sequence[str], second: Sequence[str], between: str, what: str) -> Iterator[str]:
    for at in _indices(rng, len(first) * len(second), what):
        yield first[at // len(second)] + between + second[at % len(second)]


def _indices(rng: random.Random, number: int, what: str) -> Iterator[int]:
    """Yield each index below `number` once, in random order, then raise UsageError."""
    seen: set[int] = set()
    while len(seen) < number:
        if (at := rng.randrange(number)) not in seen:
            seen.add(at)
            yield at
    raise UsageError(f"there are {number:,} {what}, and more are needed")
