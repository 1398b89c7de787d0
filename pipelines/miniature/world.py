"""A made-up world and what is written about it: the documents of the miniature, and the statements it is asked about.

People were born in cities, cities lie in countries, a country has a language and a currency, and a person has a friend.
A document is a few paragraphs of about as many tokens, each of one kind:

    facts        plain facts, in the order of a register
    statement    two plain facts, then what follows from two to four facts that stand elsewhere
    noise        two plain facts, then a number that follows from nothing
    boilerplate  a notice that repeats word for word

Half of the people are held out: they have facts, and no statement follows about them or their friends. What a student
says of them it has to put together itself. Everything follows from a seed.

What the scorer has read has a kind of its own in the place of statements, which nothing that is milled has:

    explained    how something follows, and the statement of which it does, about a namesake who was born elsewhere
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import msgspec

from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import seed_of
from sharding.storage.json_files import read_json

HEADINGS = {
    "births": "Births:",
    "friends": "Friends:",
    "places": "Places:",
    "customs": "Customs:",
    "home": "Homes:",
    "language": "Tongues:",
    "currency": "Money:",
    "friend": "Company:",
    "phone number": "Phones:",
    "licence key": "Licences:",
    "notice": "Notice:",
}
"""What every paragraph begins with. What kind it is surprises nobody further on, so that what is hard in a statement is
its answer; and a name has a space before it wherever it stands, so that it is one token and always the same."""

NOTICES = (
    f"{HEADINGS['notice']} All entries were copied by hand from the books of the town hall and may not be printed "
    "again without leave.",
    f"{HEADINGS['notice']} Whoever finds a mistake in these pages is asked to write to the keeper of the books before "
    "the year ends.",
)

NUMBER_KINDS = ("phone number", "licence key")
NUMBER_DIGITS = 8

KINDS = ("facts", "statement", "noise", "boilerplate")
SHARES = (0.44, 0.22, 0.14, 0.20)
"""Of the paragraphs, by kind."""

EXPLAINED = "explained"
"""What a scorer has read instead of statements alone. It has learned from it to heed what it was just told, as any
reader of the web has; and of the statements that are milled it knows none."""

MAX_PARAGRAPHS = 4
_BIRTHS, _FRIENDS, _CITIES = 0.5, 0.2, 0.2
"""Of the paragraphs of facts; the rest is about countries."""

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "st", "tr", "pl")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "n", "l", "r", "s", "k", "m", "x")


@dataclass(frozen=True)
class Statement:
    """A sentence that follows from facts.

    Attributes:
        kind: a name of `STATEMENT_KINDS`.
        person: index of the person it is about.
        question: the sentence up to where the answer begins, without a space at its end.
        answer: one word.
        chain: how it follows, as a thought that stands between the two says it.
    """

    kind: str
    person: int
    question: str
    answer: str
    chain: str


STATEMENT_KINDS = ("home", "language", "currency", "friend")
"""From two, three, three and four facts."""


@dataclass(frozen=True)
class World:
    """What is true.

    Attributes:
        people, cities, countries, languages, currencies: names; people and cities in the order of the register.
        born_in: of each person, an index of `cities`.
        friend_of: of each person, the index of another of the same half.
        lies_in: of each city, an index of `countries`, which has the language and the currency of its number.
        held_out: of each person, whether nothing that follows is written about them.
    """

    people: tuple[str, ...]
    cities: tuple[str, ...]
    countries: tuple[str, ...]
    languages: tuple[str, ...]
    currencies: tuple[str, ...]
    born_in: tuple[int, ...]
    friend_of: tuple[int, ...]
    lies_in: tuple[int, ...]
    held_out: tuple[bool, ...] = field(repr=False)

    # --- plain facts --------------------------------------------------------------------------------------------------

    def birth(self, person: int) -> str:
        """Where a person was born."""
        return f"{self.people[person]} was born in {self.cities[self.born_in[person]]}."

    def friendship(self, person: int) -> str:
        """Whose friend a person is."""
        return f"{self.people[person]} is a friend of {self.people[self.friend_of[person]]}."

    def place(self, city: int) -> str:
        """Where a city lies."""
        return f"{self.cities[city]} lies in {self.countries[self.lies_in[city]]}."

    def customs(self, country: int) -> str:
        """What people in a country speak and pay with."""
        name = self.countries[country]
        return (
            f"In {name} they speak {self.languages[country]}. In {name} they pay with the {self.currencies[country]}."
        )

    def moved(self, places: int) -> World:
        """The same world, had everyone been born in the city that is so many further."""
        return replace(self, born_in=tuple((city + places) % len(self.cities) for city in self.born_in))

    # --- what follows -------------------------------------------------------------------------------------------------

    def statement(self, person: int, kind: str) -> Statement:
        """What follows about a person."""
        name = self.people[person]
        subject = self.friend_of[person] if kind == "friend" else person
        city = self.born_in[subject]
        country = self.lies_in[city]
        origin = f"born in {self.cities[city]}, which lies in {self.countries[country]}"
        language, currency = self.languages[country], self.currencies[country]
        question, answer, chain = {
            "home": (f"{name}'s home country is", self.countries[country], origin),
            "language": (f"{name}'s mother tongue is", language, f"{origin}, where they speak {language}"),
            "currency": (f"{name}'s first money was the", currency, f"{origin}, where they pay with the {currency}"),
            "friend": (
                f"{name}'s friend has the mother tongue",
                language,
                f"a friend of {self.people[subject]}, who was {origin}, where they speak {language}",
            ),
        }[kind]
        return Statement(kind, person, question, answer, chain)

    @cached_property
    def statements(self) -> dict[str, Statement]:
        """Every statement by its question."""
        found = [self.statement(person, kind) for person in range(len(self.people)) for kind in STATEMENT_KINDS]
        return {statement.question: statement for statement in found}

    def lead(self, person: int, kind: str) -> str:
        """What stands before a sentence of a kind about a person: two plain facts about those before in the register.

        Args:
            person: index of the person.
            kind: one of the `STATEMENT_KINDS` or `NUMBER_KINDS`.
        """
        facts = (self.birth((person - back) % len(self.people)) for back in (2, 1))
        return " ".join((HEADINGS[kind], *facts))

    def opening(self, statement: Statement) -> str:
        """The paragraph of a statement up to where its answer begins."""
        return f"{self.lead(statement.person, statement.kind)} {statement.question}"


def make_world(seed: int, *, people: int = 48, cities: int = 12, countries: int = 6) -> World:
    """A world.

    Args:
        seed: names, facts and who is held out follow from it.
        people, cities, countries: how many; of people an even number, and two in each half at least.

    Raises:
        RequestError: there are too few.
    """
    if people < 4 or people % 2 or min(cities, countries) < 1:
        raise RequestError(f"people {people}, cities {cities}, countries {countries}: people is even and at least 4")
    draw = random.Random(seed_of(f"miniature world {seed}"))
    names = _names(draw, people + cities + 3 * countries)
    parts = list(accumulate((people, cities, countries, countries), initial=0))
    held_out = [place < people // 2 for place in range(people)]
    draw.shuffle(held_out)
    friend_of = [0] * people
    for half in (False, True):
        members = [person for person in range(people) if held_out[person] == half]
        draw.shuffle(members)
        for person, friend in zip(members, members[1:] + members[:1], strict=True):
            friend_of[person] = friend
    # Each place as often as the others: no answer is right more often than one in as many.
    born_in = [person % cities for person in range(people)]
    lies_in = [city % countries for city in range(cities)]
    draw.shuffle(born_in)
    draw.shuffle(lies_in)
    return World(
        people=tuple(sorted(names[: parts[1]])),
        cities=tuple(sorted(names[parts[1] : parts[2]])),
        countries=tuple(names[parts[2] : parts[3]]),
        languages=tuple(names[parts[3] : parts[4]]),
        currencies=tuple(names[parts[4] :]),
        born_in=tuple(born_in),
        friend_of=tuple(friend_of),
        lies_in=tuple(lies_in),
        held_out=tuple(held_out),
    )


def save_world(world: World, url: str) -> None:
    """Write a world where `load_world` finds it."""
    storage.write_json(url, msgspec.to_builtins(world))


def load_world(url: str) -> World:
    """A world that was saved.

    Raises:
        MillError: the file isn't there or holds none.
    """
    return read_json(url, World, "a world of the miniature")


def write_documents(world: World, count: int, seed: int, *, explained: bool = False) -> Iterator[dict[str, str]]:
    """Documents about a world, {"id", "text"}; each follows from the seed and its own number.

    Args:
        count: how many, of two to `MAX_PARAGRAPHS` paragraphs.
        seed: another one gives other documents about the same world.
        explained: instead of statements alone, `EXPLAINED` ones.
    """
    kinds = tuple(EXPLAINED if explained and kind == "statement" else kind for kind in KINDS)
    for number in range(count):
        draw = random.Random(seed_of(f"miniature document {seed}/{number}"))
        drawn = draw.choices(kinds, SHARES, k=draw.randint(2, MAX_PARAGRAPHS))
        yield {"id": f"{seed}-{number:06d}", "text": "\n\n".join(write_paragraph(world, kind, draw) for kind in drawn)}


def write_paragraph(world: World, kind: str, draw: random.Random) -> str:
    """A paragraph of one of the `KINDS`, or of `EXPLAINED` two."""
    if kind == "boilerplate":
        return draw.choice(NOTICES)
    if kind == "facts":
        return " ".join(_facts(world, draw))
    if kind == "noise":
        person = draw.randrange(len(world.people))
        digits = "".join(draw.choices("0123456789", k=NUMBER_DIGITS))
        number = draw.choice(NUMBER_KINDS)
        return f"{world.lead(person, number)} {world.people[person]}'s {number} is {digits}."
    person = draw.choice([person for person, held_out in enumerate(world.held_out) if not held_out])
    said = draw.choice(STATEMENT_KINDS)
    if kind == EXPLAINED:
        statement = world.moved(draw.randrange(1, len(world.cities))).statement(person, said)
        return f"{statement.chain}\n\n{world.opening(statement)} {statement.answer}."
    statement = world.statement(person, said)
    return f"{world.opening(statement)} {statement.answer}."


def _facts(world: World, draw: random.Random) -> list[str]:
    """A heading, and a page of the register of such facts."""
    chance = draw.random()
    if chance < _BIRTHS + _FRIENDS:
        kind, write = ("births", world.birth) if chance < _BIRTHS else ("friends", world.friendship)
        return [HEADINGS[kind], *map(write, _page(len(world.people), 4, draw))]
    if chance < _BIRTHS + _FRIENDS + _CITIES:
        return [HEADINGS["places"], *map(world.place, _page(len(world.cities), 4, draw))]
    return [HEADINGS["customs"], *map(world.customs, _page(len(world.countries), 2, draw))]


def _page(entries: int, size: int, draw: random.Random) -> list[int]:
    """The places of the entries on a page, the first of which follow the last."""
    first = draw.randrange(0, entries, size)
    return [place % entries for place in range(first, first + size)]


def _names(draw: random.Random, count: int) -> list[str]:
    """Different made-up words of two syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [draw.choice(_ONSETS) + draw.choice(_VOWELS) for _ in range(2)]
        found["".join(parts).capitalize() + draw.choice(_CODAS)] = None
    return list(found)
