"""The embedded default: an invented catalogue and the users who read it, generated from a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.source import SourceData
from sprec_ray.types import Interaction, Item

# Per genre: words that begin series titles, words that begin other titles, and nouns. No word is in two lists.
_WORDS = {
    "fantasy": (
        "Elder Rune Wyvern Thorn Silver Oaken Moon Frost",
        "Fabled Elven Golden Hollow Arcane",
        "Crown Sword Throne Spell Tower Raven Oath Realm Staff Dragon",
    ),
    "science": (
        "Orbit Quantum Solar Cobalt Neon Lunar Carbon Plasma",
        "Stellar Binary Distant Martian Ion",
        "Signal Engine Station Drift Planet Rocket Colony Circuit Vector Probe",
    ),
    "mystery": (
        "Velvet Crimson Locked Marble Second Paper Amber Brass",
        "Missing Perfect Quiet Final Broken",
        "Alibi Clue Verdict Witness Motive Ledger Inquest Cipher Suspect Key",
    ),
    "romance": (
        "Tender Rosy Summer Lilac Honey Ivory Peach Pearl",
        "Sweet Dear Blushing Secret Gentle",
        "Kiss Bride Letter Heart Promise Dance Wedding Garden Waltz Vow",
    ),
    "horror": (
        "Bleak Grave Shadow Rotten Pale Ashen Bone Murky",
        "Silent Cursed Screaming Starving Dead",
        "Crypt Ghost Cellar Coffin Scream Doll Asylum Marsh Mirror Grin",
    ),
    "history": (
        "Roman Royal Tudor Norman Viking Saxon Spartan Imperial",
        "Ancient Lost Great Bronze Last",
        "Empire Legion Treaty Duchess Siege Fleet Dynasty Abbey Revolt Banner",
    ),
    "comedy": (
        "Clumsy Wacky Lucky Soggy Goofy Jolly Cranky Fuzzy",
        "Awkward Silly Grumpy Hopeless Noisy",
        "Waiter Uncle Vicar Picnic Camel Sofa Parrot Landlord Pickle Cousin",
    ),
    "western": (
        "Dusty Copper Prairie Canyon Saddle Rusty Cactus Desert",
        "Lonesome Wild Wanted Bitter Outlaw",
        "Sheriff Saloon Ranch Bandit Trail Gulch Mustang Revolver Wagon Bounty",
    ),
}
GENRES = tuple(_WORDS)

# Titles that break careless quoting, splitting and encoding; one genre each, in the order of GENRES.
_AWKWARD = (
    'The Wizard Called "Ash"',
    "Café Andromède",
    'Who Said "Never"?',
    "A Widow's Yes, and No",
    "It",
    "Æthelred's Men",
    '"Sorry" Is Not a Plan',
    "El Niño's Last Ride",
)
_SERIES_SHARE = 0.55
_MIN_VOLUMES, _MAX_VOLUMES = 3, 5
_CONTINUE = 0.6
"""Chance that a reader of volume n takes volume n + 1 next."""
_NEXT_GENRE = 0.6
"""Chance that a new title is of the genre that follows the last one in the reader's own cycle."""
_ZIPF_SCALE = 10**9
_SERIES_BONUS = 1
"""How much likelier a first volume is begun than a title of no series and the same rank."""
_MIN_LENGTH, _MAX_LENGTH = 15, 25
_FIRST_DAY, _NUM_START_DAYS, _MAX_GAP_DAYS = 18_000, 365, 12
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """Items by number, and what users need to know of them."""

    items: tuple[Item, ...]
    next_volume: dict[int, int]
    entries: tuple[tuple[int, ...], ...]
    """Per genre the items a reader starts with: first volumes and titles of no series."""
    weights: tuple[int, ...]
    """Per item its popularity as an entry; whole numbers, so that draws are equal on every platform."""


def read_demo(config: DataConfig) -> SourceData:
    """Generated items and interactions; the same for the same ``data.demo``, whatever the run's seed.

    Titles carry words of their genre. About half of them are volumes of a series, ``Frost Oath (Frost Crown #3)``,
    which most readers read in order; readers have one to three genres, which they visit in turns; what they start with
    follows Zipf's law within the genre, 1 / rank. No reader reads a title twice. Times are whole days, so they tie.

    Raises ValueError when the word lists do not give ``data.demo.num_items`` titles.
    """
    demo = config.demo
    rng = np.random.Generator(np.random.PCG64([demo.seed, demo.num_items]))
    catalogue = _make_catalogue(demo.num_items, rng)
    rows = []
    for user in range(demo.num_users):
        day = _FIRST_DAY + int(rng.integers(_NUM_START_DAYS))
        for position, item in enumerate(_read_titles(catalogue, rng)):
            day += int(rng.integers(_MAX_GAP_DAYS)) if position else 0
            rows.append((day, user, position, item))
    interactions = tuple(
        Interaction(
            user_id=f"user-{user}",
            item_id=catalogue.items[item].item_id,
            timestamp=float(day * _SECONDS_PER_DAY),
            order=order,
        )
        for order, (day, user, _, item) in enumerate(sorted(rows))
    )
    return SourceData(items=catalogue.items, interactions=interactions)


def _make_catalogue(num_items: int, rng: np.random.Generator) -> _Catalogue:
    titles: list[tuple[str, int]] = []  # title and number of its main genre
    next_volume: dict[int, int] = {}
    later: set[int] = set()  # volumes after the first
    extra_genres: list[tuple[str, ...]] = []
    series = [_series_names(genre) for genre in GENRES]
    for number in itertools.count():
        genre = number % len(GENRES)
        num_volumes = int(rng.integers(_MIN_VOLUMES, _MAX_VOLUMES + 1))
        names = next(series[genre], None)
        if names is None or len(titles) + num_volumes > round(num_items * _SERIES_SHARE):
            break
        first, series_noun, nouns = names
        extra = _draw_extra_genres(genre, rng)
        for volume in range(1, num_volumes + 1):
            if volume > 1:
                next_volume[len(titles) - 1] = len(titles)
                later.add(len(titles))
            titles.append((f"{first} {nouns[volume - 1]} ({first} {series_noun} #{volume})", genre))
            extra_genres.append(extra)
    singles = itertools.chain(zip(_AWKWARD, range(len(GENRES)), strict=True), _single_titles())
    for title, genre in itertools.islice(singles, num_items - len(titles)):
        titles.append((title, genre))
        extra_genres.append(_draw_extra_genres(genre, rng))
    if len(titles) < num_items:
        raise ValueError(f"data.demo.num_items={num_items} is more than the word lists give; set it to {len(titles)}")
    entries: list[list[int]] = [[] for _ in GENRES]
    for index, (_, genre) in enumerate(titles):
        if index not in later:
            entries[genre].append(index)
    weights = [0] * num_items
    for numbers in entries:
        for rank, index in enumerate(rng.permutation(numbers).tolist(), start=1):
            weights[index] = _ZIPF_SCALE * (_SERIES_BONUS if index in next_volume else 1) // rank
    return _Catalogue(
        items=tuple(
            Item(item_id=f"item-{index}", title=title, genres=(GENRES[genre], *extra_genres[index]))
            for index, (title, genre) in enumerate(titles)
        ),
        next_volume=next_volume,
        entries=tuple(map(tuple, entries)),
        weights=tuple(weights),
    )


def _series_names(genre: str) -> Iterator[tuple[str, str, list[str]]]:
    """First word, noun of the series and nouns of its volumes; eight series of a genre share no first word."""
    firsts, _, nouns = (words.split() for words in _WORDS[genre])
    for shift in range(len(nouns)):
        for number, first in enumerate(firsts):
            start = number + shift
            rotated = [nouns[(start + step) % len(nouns)] for step in range(len(nouns))]
            yield first, rotated[0], rotated


def _single_titles() -> Iterator[tuple[str, int]]:
    """Titles of no series and their genre, all genres in turns: two words first, longer ones when those are used up."""
    words = [[text.split() for text in _WORDS[genre][1:]] for genre in GENRES]
    pairs = [list(itertools.product(nouns, firsts)) for firsts, nouns in words]
    for number in range(len(pairs[0])):
        for genre in range(len(GENRES)):
            noun, first = pairs[genre][number]
            yield f"{first} {noun}", genre
    for shift in range(1, len(words[0][1])):
        for number in range(len(pairs[0])):
            for genre, (_, nouns) in enumerate(words):
                noun, first = pairs[genre][number]
                yield f"{first} {noun} and {nouns[(nouns.index(noun) + shift) % len(nouns)]}", genre


def _draw_extra_genres(genre: int, rng: np.random.Generator) -> tuple[str, ...]:
    others = [name for name in GENRES if name != GENRES[genre]]
    count = int(np.searchsorted([0.5, 0.85], rng.random()))
    return tuple(others[int(index)] for index in rng.permutation(len(others))[:count])


def _read_titles(catalogue: _Catalogue, rng: np.random.Generator) -> list[int]:
    """The item numbers one user reads, in order."""
    cycle = _draw_tastes(rng)
    length = int(rng.integers(_MIN_LENGTH, _MAX_LENGTH + 1))
    read: list[int] = []
    turn = 0
    while len(read) < length:
        follow = catalogue.next_volume.get(read[-1]) if read else None
        if follow is not None and rng.random() < _CONTINUE:
            read.append(follow)
            continue
        turn += 1 if rng.random() < _NEXT_GENRE else 0
        entry = _draw_entry(catalogue, cycle[turn % len(cycle)], set(read), rng)
        if entry is None:
            break
        read.append(entry)
    return read


def _draw_tastes(rng: np.random.Generator) -> list[int]:
    """One to three genres; genre g is chosen with weight 1 / (g + 1)."""
    left = list(range(len(GENRES)))
    tastes = []
    for _ in range((1, 2, 2, 3, 3, 3)[int(rng.integers(6))]):
        cumulative = np.cumsum([_ZIPF_SCALE // (genre + 1) for genre in left], dtype=np.int64)
        tastes.append(left.pop(int(np.searchsorted(cumulative, rng.integers(cumulative[-1]), side="right"))))
    return tastes


def _draw_entry(catalogue: _Catalogue, genre: int, read: set[int], rng: np.random.Generator) -> int | None:
    """An unread entry, of the genre while it has one, then of any; None when everything is read."""
    unread = [item for item in catalogue.entries[genre] if item not in read]
    unread = unread or [item for entries in catalogue.entries for item in entries if item not in read]
    if not unread:
        return None
    cumulative = np.cumsum([catalogue.weights[item] for item in unread], dtype=np.int64)
    return unread[int(np.searchsorted(cumulative, rng.integers(cumulative[-1]), side="right"))]
