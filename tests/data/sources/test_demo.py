import hashlib
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from sprec_ray.config.data import DataConfig, DemoDataConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response, render_response
from sprec_ray.data.sequences import Event, chronological_split, user_windows
from sprec_ray.data.sources.demo import read_demo
from sprec_ray.data.sources.source import SourceData
from sprec_ray.types import Example


@pytest.fixture(scope="module")
def demo() -> SourceData:
    return read_demo(DataConfig())


@pytest.fixture(scope="module")
def splits(demo: SourceData) -> dict[str, tuple[Example, ...]]:
    assert demo.interactions is not None
    titles = {item.item_id: item.title for item in demo.items}
    events: dict[str, list[Event]] = defaultdict(list)
    for row in demo.interactions:
        events[row.user_id].append(Event(row.timestamp, row.order, titles[row.item_id]))
    windows = [
        example
        for user, of_user in events.items()
        for example in user_windows(user, of_user, min_interactions=10, min_history=3, max_history=10)
    ]
    return chronological_split(windows, (0.8, 0.1, 0.1))


def popular(train: tuple[Example, ...]) -> list[str]:
    return [title for title, _ in Counter(example.target for example in train).most_common()]


def test_the_default_demo_has_its_items_and_users(demo: SourceData) -> None:
    assert demo.interactions is not None
    assert len(demo.items) == len(Catalog.from_items(demo.items)) == 400
    lengths = Counter(row.user_id for row in demo.interactions)
    assert len(lengths) == 1200
    assert 15 <= min(lengths.values()) <= max(lengths.values()) <= 25
    assert all(1 <= len(item.genres) == len(set(item.genres)) <= 3 for item in demo.items)


def test_no_user_repeats_an_item(demo: SourceData) -> None:
    assert demo.interactions is not None
    assert len({(row.user_id, row.item_id) for row in demo.interactions}) == len(demo.interactions)


def test_the_demo_is_the_same_in_every_process_and_release(demo: SourceData) -> None:
    code = (
        "import hashlib; from sprec_ray.config.data import DataConfig;"
        "from sprec_ray.data.sources.demo import read_demo;"
        "print(hashlib.sha256(repr(read_demo(DataConfig())).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(repr(demo).encode()).hexdigest()
    other_seed = read_demo(DataConfig(demo=DemoDataConfig(seed=1)))
    assert other_seed.interactions != demo.interactions


def test_awkward_titles_are_in_the_demo_and_survive_a_response(demo: SourceData) -> None:
    titles = [item.title for item in demo.items]
    assert any('"' in title for title in titles)
    assert any("'" in title for title in titles)
    assert any(not title.isascii() for title in titles)
    assert all(parse_response(render_response(title)) == title for title in titles)


def test_order_tells_more_than_popularity(splits: dict[str, tuple[Example, ...]]) -> None:
    """HR@5 on test: popularity near .07; what followed the last title in train, then popularity, above .25."""
    test, ranking = splits["test"], popular(splits["train"])
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in splits["train"]:
        followers[example.history[-1]][example.target] += 1

    def next_titles(example: Example) -> list[str]:
        likely = [title for title, _ in followers[example.history[-1]].most_common(20)]
        return [title for title in dict.fromkeys(likely + ranking) if title not in example.history][:5]

    by_popularity = sum(example.target in ranking[:5] for example in test) / len(test)
    by_order = sum(example.target in next_titles(example) for example in test) / len(test)
    assert 0.03 < by_popularity < 0.10
    assert by_order > 0.25


def test_a_few_titles_are_read_most(splits: dict[str, tuple[Example, ...]]) -> None:
    """A uniform catalogue would give its first tenth .10 of the targets."""
    counts = Counter(example.target for example in splits["train"])
    head = sum(count for _, count in counts.most_common(40)) / sum(counts.values())
    assert head > 0.3


def test_the_splits_are_large_enough_for_the_default_samples(splits: dict[str, tuple[Example, ...]]) -> None:
    assert len(splits["train"]) >= 4096
    assert len(splits["valid"]) >= 512
    assert len(splits["test"]) >= 500


@pytest.mark.parametrize("num_items", [50, 51, 123, 1000])
def test_other_sizes_have_distinct_titles_and_readers(num_items: int) -> None:
    data = read_demo(DataConfig(demo=DemoDataConfig(num_items=num_items, num_users=20)))
    assert len({item.title for item in data.items}) == num_items
    assert data.interactions


def test_more_items_than_the_words_give_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data\.demo\.num_items=100000 is more than the word lists give; set it to \d+"
    ):
        read_demo(DataConfig(demo=DemoDataConfig(num_items=100_000)))
