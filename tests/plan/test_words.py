"""A plan is read from words, says itself in words, and is right from birth."""

import itertools
import json
from typing import get_args

import pytest

from reelora.errors import ConfigError
from reelora.plan import Placement, Plan, parse_plan

SWITCHES = ("use_streams", "tiles", "slices", "fp8", "compile")


def plans():
    for placement in get_args(Placement):
        for chosen in itertools.product((False, True), repeat=len(SWITCHES)):
            switches = dict(zip(SWITCHES, chosen, strict=True))
            if placement == "group" or not switches["use_streams"]:
                yield Plan(placement=placement, **switches)


def test_every_plan_is_what_its_own_words_mean():
    for plan in (*plans(), Plan(attention="flash", tiles=True)):
        assert parse_plan(plan.spelled) == plan


def test_every_plan_can_be_stored_as_json_and_says_something_else():
    every = list(plans())
    assert all(Plan(**json.loads(json.dumps(plan.as_json()))) == plan for plan in every)
    assert len({str(plan) for plan in every}) == len({plan.spelled for plan in every}) == len(every)


@pytest.mark.parametrize("text", ["tiles", "resident, tiles", "tiles resident", " resident,tiles "])
def test_order_and_spaces_do_not_matter_and_resident_may_be_left_out(text):
    assert parse_plan(text) == Plan(tiles=True)


def test_auto_is_no_plan_yet():
    assert parse_plan("auto") == "auto"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("groop", "'groop' is none of its words, did you mean 'group'"),
        ("model,tile", "did you mean 'tiles'"),
        ("model,group", "model and group exclude each other"),
        ("auto,tiles", "auto stands alone"),
        ("", "write auto"),
        ("model,streams", "group,streams"),
        ("attention=", "needs one name"),
        ("fp9,groop", "'fp9'.*'groop'"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_nearest_word(text, what):
    with pytest.raises(ConfigError, match=what):
        parse_plan(text)


def test_a_placement_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'sequential'"):
        Plan(placement="sequencial")  # pyright: ignore[reportArgumentType]
