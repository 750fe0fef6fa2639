"""Covering arrays against brute force, over choices of which some can't be had together."""

import itertools
import random

import pytest

from llmlab.check.covering_array import CoveringArray, minimal_subset, ordered_pair

PAIR = (("o", "mlm"), ("m", "both"))  # a level of two items


def factors(*sizes):
    return [[((f"f{i}", f"v{n}"),) for n in range(size)] for i, size in enumerate(sizes)]


def possible(made, bad):
    """Every pair of items that is in some row which holds none of `bad`, by looking at all rows."""
    found = set()
    for row in itertools.product(*made):
        items = [item for level in row for item in level]
        if not any(set(b) <= set(items) for b in bad):
            found |= {ordered_pair(a, b) for a, b in itertools.combinations(items, 2)}
    return found


def covered(cover):
    return {ordered_pair(a, b) for row in cover.rows for a, b in itertools.combinations(cover.items(row), 2)}


def refusing(bad, asked=None):
    def refuse(items):
        if asked is not None:
            asked.append(tuple(items))
        return next((f"{b} can't be" for b in bad if set(b) <= set(items)), None)

    return refuse


CONFLICTS = {
    "none": [],
    "of two": [[("f0", "v1"), ("f1", "v2")], [("f2", "v0"), ("f3", "v1")]],
    "of three": [[("f0", "v0"), ("f1", "v0"), ("f2", "v1")]],
    "with what is usual": [[("f0", "v0"), ("f1", "v3")], [("f1", "v0"), ("f3", "v2")]],
    "a choice of its own": [[("f2", "v2")]],
    "that leave nothing": [[("f0", "v2"), ("f1", f"v{n}")] for n in range(3)] + [[("f1", "v3"), ("f2", "v1")]],
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_every_pair_that_can_be_had_is_there_and_no_other(name):
    made, bad, asked = factors(3, 4, 3, 3), CONFLICTS[name], []
    cover = CoveringArray(made, refusing(bad, asked))
    rows = list(cover.cover(cover.pairs()))
    should = possible(made, bad)
    assert covered(cover) == should
    assert set(cover.refused) == set(cover.pairs()) - should
    assert all(cover.refused.values()), "each has a reason"
    assert not any(set(b) <= set(cover.items(row)) for b in bad for row in rows)
    assert len(asked) == len(set(asked)), "nothing is asked twice"
    assert len(rows) <= 20


def test_levels_of_several_items_and_random_conflicts():
    made = [[PAIR, (("o", "clm"), ("m", "back")), (("m", "odd"),)], *factors(4, 3, 5)]
    singles = [item for levels in made[1:] for level in levels for item in level]
    usual = {*PAIR, *(levels[0][0] for levels in made[1:])}
    for seed in range(20):
        chance = random.Random(seed)
        bad = [list(pair) for pair in chance.sample(list(itertools.combinations([*PAIR, *singles], 2)), 6)]
        bad = [b for b in bad if not set(b) <= usual]
        cover = CoveringArray(made, refusing(bad))
        list(cover.cover(cover.pairs()))
        assert covered(cover) & set(cover.pairs()) == possible(made, bad) & set(cover.pairs()), seed


def test_it_is_always_the_same():
    one, other = (CoveringArray(factors(5, 4, 3, 4), refusing(CONFLICTS["of two"])) for _ in range(2))
    assert list(one.cover(one.pairs())) == list(other.cover(other.pairs()))


def test_the_number_of_rows_is_near_the_least_that_there_can_be():
    cover = CoveringArray(factors(11, 11, 8, 7, 6, 5, 4, 4, 4, 3, 2), refusing([]))
    assert 121 <= len(list(cover.cover(cover.pairs()))) <= 135


def test_asked_again_it_has_the_same_rows():
    cover = CoveringArray(factors(5, 4, 3), refusing(CONFLICTS["of two"][:1]))
    rows = list(cover.cover(cover.pairs()))
    assert list(cover.cover(cover.pairs())) == rows
    some = list(cover.cover([p for p in cover.pairs() if ("f1", "v1") in p]))
    assert some and set(some) <= set(rows) and all(("f1", "v1") in cover.items(row) for row in some)


def test_one_item_with_all_others():
    cover = CoveringArray(factors(4, 6, 3), refusing([[("f0", "v2"), ("f1", "v5")]]))
    item = ("f0", "v2")
    rows = list(cover.cover([p for p in cover.pairs() if item in p]))
    assert len(rows) == 5 and all(item in cover.items(row) for row in rows)
    assert cover.refused == {(item, ("f1", "v5")): "[('f0', 'v2'), ('f1', 'v5')] can't be"}


def test_what_an_item_needs_comes_with_it():
    """A position that the usual kernel can't do is tried with another."""
    made = [
        *factors(2),
        [(("kernel", "fast"),), (("kernel", "slow"),)],
        [(("position", "plain"),), (("position", "odd"),)],
    ]

    def refuse(items):
        return "choose kernel=slow" if {("kernel", "fast"), ("position", "odd")} <= set(items) else None

    cover = CoveringArray(made, refuse)
    row, reason = cover.usual([("position", "odd")])
    assert reason is None and ("kernel", "slow") in cover.items(row)
    _, reason = cover.usual([("position", "odd"), ("kernel", "fast")])
    assert reason == "choose kernel=slow"


@pytest.mark.parametrize("culprits", [{3}, {0, 9}, {1, 2, 7}, set(range(10))])
def test_the_smallest_that_is_bad(culprits):
    tried = []

    def bad(some):
        tried.append(some)
        return culprits <= set(some)

    assert set(minimal_subset(range(10), bad)) == culprits
    assert len(tried) < 30


def test_conflicts_found_elsewhere_hold_for_rows_that_were_there():
    """A twin that refuses less, as a kernel that is built and not run: what the first refuses is in no row of it."""
    made, bad = factors(3, 4, 3, 3), CONFLICTS["of two"]
    first, second = CoveringArray(made, refusing(bad)), CoveringArray(made, refusing([]))
    list(second.cover(second.pairs()))
    assert covered(second) & {ordered_pair(*b) for b in bad}
    list(first.cover(first.pairs()))
    second.add_conflicts(first.conflicts)
    list(second.cover(second.pairs()))
    assert covered(second) == possible(made, bad)
    assert set(second.refused) == set(first.refused)
