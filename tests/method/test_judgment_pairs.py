"""Judgment pairs: the strongest against the weakest judgment."""

from dataclasses import replace

from method_records import RUN, make_judgment

from selfreward_lite.config.settings import Schedule
from selfreward_lite.data.records import Rating, make_id
from selfreward_lite.method import judgment_pairs


def test_judgment_pairs_take_the_ends_within_the_limit():
    drawn = {
        one.id: one
        for one in (
            make_judgment(0, 4, "x" * 10),
            make_judgment(1, 3, "y" * 30),
            make_judgment(2, 2, "z" * 20),
        )
    }
    rated = [
        Rating(make_id(RUN, Rating, 1, name), 1, name, "r", strength, 0.5, 0.5, 0.01)
        for name, strength in zip(drawn, (0.5, 0.9, -1.4), strict=True)
    ]
    (pair,) = judgment_pairs.build_judgment_pairs(
        rated, drawn, Schedule(rho=0, judgment_pairs=True), id_namespace=RUN, iteration=1
    ).records
    assert (drawn[pair.chosen_id].text[0], drawn[pair.rejected_id].text[0]) == ("y", "z")
    limited = Schedule(rho=0, judgment_pairs=True, max_chosen_judgment=29)
    drops = judgment_pairs.build_judgment_pairs(
        rated, drawn, limited, id_namespace=RUN, iteration=1
    ).drops
    assert drops == {"chosen judgment too long": 1}


def test_judgment_that_was_cut_is_never_chosen():
    """Its score may be forced; but a model that is trained on it learns to stop anywhere."""
    drawn = {one.id: one for one in (make_judgment(0, 4), make_judgment(1, 2))}
    rated = [
        Rating(make_id(RUN, Rating, 1, name), 1, name, "r", strength, 0.5, 0.5, 0.01)
        for name, strength in zip(drawn, (0.9, -0.9), strict=True)
    ]
    for cut, pairs, drops in ((0, 0, {"chosen judgment was cut": 1}), (1, 1, {})):
        name = list(drawn)[cut]
        judged = drawn | {name: replace(drawn[name], finish="length", source="forced")}
        made = judgment_pairs.build_judgment_pairs(
            rated, judged, Schedule(rho=0, judgment_pairs=True), id_namespace=RUN, iteration=1
        )
        assert (len(made.records), made.drops) == (pairs, drops)
