"""The words that workloads write with: a specimen's word-level tokenizer and a real model read the same text."""

from __future__ import annotations

import re
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES: Final[tuple[str, ...]] = (
    _words("""Amsterdam Athens Bangkok Barcelona Beirut Berlin Bogota Boston Brussels Budapest Cairo Chicago Copenhagen
    Dakar Dublin Geneva Glasgow Hamburg Havana Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon London Madrid Manila
    Montreal Mumbai Nairobi Oslo Prague Quito Santiago Seoul Toronto Vienna Zurich""")
)
"""Cities that needles are about; the haystack names none."""

NUMBERS: Final[tuple[str, ...]] = tuple(str(number) for number in range(10, 100))
"""Two-digit numbers that answers are made of; the haystack contains none."""

SLOTS: Final[dict[str, tuple[str, ...]]] = {
    "person": _words("""baker farmer teacher doctor painter sailor gardener tailor clerk student neighbour miller
        carpenter musician librarian shepherd nurse driver mason captain"""),
    "mood": _words("old young quiet tall patient tired cheerful careful busy kind"),
    "thing": _words("""basket letter lantern bicycle ladder kettle blanket map umbrella mirror chair bucket wagon clock
        violin parcel candle hammer coat book"""),
    "quality": _words("small heavy wooden red blue broken empty new narrow warm"),
    "place": _words("""market harbour bridge garden station library mill square orchard river church school forest
        kitchen meadow workshop bakery tower"""),
    "did": _words("""carried repaired found sold borrowed painted lost cleaned bought noticed brought hid moved measured
        forgot"""),
    "went": _words("walked hurried drove returned wandered"),
    "way": ("to", "past", "towards", "through", "around"),
    "beside": ("near", "behind", "beside", "at", "across from", "not far from"),
    "animal": _words("dog cat horse goose goat crow hen fox"),
    "rested": _words("slept waited played sat stood"),
    "food": _words("bread soup cheese tea honey fish rice cake"),
    "taste": ("warm", "old", "new", "gone", "lost"),
    "hour": ("late", "quiet", "warm", "night", "morning"),
    "state": ("narrow", "empty", "closed", "broken", "quiet"),
    "weather": _words("rain wind fog snow storm frost"),
    "when": (
        "in the morning",
        "in the evening",
        "after lunch",
        "before sunset",
        "late at night",
        "that afternoon",
        "on the way home",
        "last winter",
        "last summer",
        "for a while",
    ),
    "reason": (
        "because the shop was closed",
        "because nobody else had time",
        "while the children watched",
        "before the guests came",
        "until the light was gone",
        "without saying a word",
        "as if nothing had happened",
    ),
}
"""What a template's `{slot}` may become."""

TEMPLATES: Final[tuple[str, ...]] = (
    "The {mood} {person} {did} the {thing} {beside} the {place}.",
    "The {person} {did} the {quality} {thing} {when}.",
    "The {person} {went} {way} the {place} {when}.",
    "The {mood} {person} and the {person} {went} {way} the {place} {reason}.",
    "The {animal} {rested} {beside} the {place} {when}.",
    "The {quality} {thing} stood {beside} the {place} {reason}.",
    "The {weather} came over the {place} {when}.",
    "After the {weather}, the {person} {did} the {thing} {beside} the {place}.",
    "Before the {weather}, the {mood} {person} {did} every {quality} {thing}.",
    "In the {place}, the {person} {did} some {food} {when}.",
    "In the {place} the {animal} {rested} {beside} the {quality} {thing}.",
    "Nobody {did} the {thing} {beside} the {place} {when}.",
    "Nobody saw the {mood} {person} {beside} the {place}, but the {animal} did.",
    "When the {person} {went} {way} the {place}, the {animal} {rested} {beside} the {thing}.",
    "When the {weather} was over, the {person} {went} {way} the {place}.",
    "Every {person} {beside} the {place} {did} some {food} {when}.",
    "Every {quality} {thing} was sold {when}, but not the {quality} {thing}.",
    "Some {person} {did} this {thing} {reason}.",
    "The {food} {beside} the {thing} was for the {person}, not for the {animal}.",
    "The {person} said that the {food} was {taste}, but the {mood} {person} did not agree.",
    "The {person} said that the {weather} would be over {when}.",
    "There was some {food} in the {quality} {thing} {beside} the {place}.",
    "There was no {thing} in the {place}, and the {person} {went} home {reason}.",
    "It was {hour} in the {place}, and the {person} {did} another {thing}.",
    "It was the {mood} {person} who {did} the {thing} {when}.",
    "Last week the {person} {did} the {quality} {thing} and {went} {way} the {place}.",
    "On that day the {weather} was so heavy that the {animal} {rested} in the {place}.",
    "With the {thing} in one hand, the {person} {went} {way} the {place}.",
    "From the {place} one could see the {mood} {person} {beside} the {place}.",
    "The road to the {place} was {state} after the {weather}.",
)
"""Sentences of the haystack, each ending in a full stop."""

NEEDLE: Final = "The magic number for {city} is {value}."
"""The sentence that hides in the haystack."""

QUESTION: Final = "What is the magic number for {city}? The magic number for {city} is"
"""What stands after the haystack; the answer follows it after a space."""


def words() -> tuple[str, ...]:
    """Return every word and punctuation mark that a workload of this lexicon can write, sorted, each once."""
    texts = [NEEDLE, QUESTION, *TEMPLATES, *CITIES, *NUMBERS, *(choice for slot in SLOTS.values() for choice in slot)]
    return tuple(sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", re.sub(r"{\w+}", " ", text))}))
