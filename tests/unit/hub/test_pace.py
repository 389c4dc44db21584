"""How many users a run takes: storage hosts of every kind, and what becomes of the runs there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ansible_bootstrap.dispatch.batch_size import TARGET_SECONDS, Pace

CEILING, FLOOR = 500, 4


def storm(pace: Pace, users: int, seconds: Callable[[int], float]) -> list[int]:
    """So many wait at once; return the sizes of the runs they go into."""
    sizes = []
    while users:
        sizes.append(min(users, pace.size))
        users -= sizes[-1]
        pace.finished(sizes[-1], seconds(sizes[-1]))
    return sizes


def test_a_new_storage_host_is_trusted_with_all() -> None:
    assert Pace(CEILING, FLOOR).size == CEILING


def test_short_runs_stay_as_large_as_they_may_be() -> None:
    assert storm(Pace(CEILING, FLOOR), 2000, lambda users: 1 + 0.002 * users) == [500] * 4


def test_a_run_that_was_too_long_is_followed_by_one_of_the_right_size() -> None:
    pace = Pace(CEILING, FLOOR)
    pace.finished(500, 75)
    assert pace.size == 66
    pace.finished(66, 10.9)
    assert 55 <= pace.size < 66


def test_where_users_cost_much_runs_are_as_long_as_wanted_and_no_shorter() -> None:
    pace = Pace(CEILING, FLOOR)
    sizes = storm(pace, 3000, lambda users: 1 + 0.15 * users)
    assert sizes[0] == 500 and len(sizes) > 5
    assert all(TARGET_SECONDS / 2 <= 1 + 0.15 * size <= 1.2 * TARGET_SECONDS for size in sizes[1:-1]), sizes


def test_no_run_is_cut_below_the_floor() -> None:
    pace = Pace(CEILING, FLOOR)
    storm(pace, 600, lambda users: 60.0 * users)
    assert pace.size == FLOOR


def test_a_ceiling_below_the_floor_is_the_ceiling() -> None:
    pace = Pace(2, FLOOR)
    storm(pace, 40, lambda users: 60.0 * users)
    assert pace.size == 2


def test_size_grows_back_by_doubling_when_runs_are_short_again() -> None:
    pace = Pace(CEILING, FLOOR)
    storm(pace, 600, lambda users: 60.0 * users)
    assert storm(pace, 2000, lambda users: 1.0)[:9] == [4, 8, 16, 32, 64, 128, 256, 500, 500]


def test_runs_that_were_not_full_let_nothing_grow() -> None:
    pace = Pace(CEILING, FLOOR)
    storm(pace, 600, lambda users: 60.0 * users)
    for _ in range(20):
        pace.finished(1, 1.0)
    assert pace.size == FLOOR


def test_a_first_user_who_waits_for_a_download_does_not_slow_the_class() -> None:
    pace = Pace(CEILING, FLOOR)
    pace.finished(1, 60)
    assert pace.size == CEILING


def test_a_storage_host_that_is_slow_to_start_is_not_asked_more_often() -> None:
    """Twelve seconds for anything: runs of four would take 25 minutes for a class of 500."""
    pace = Pace(CEILING, FLOOR)
    assert storm(pace, 2500, lambda users: 12 + 0.004 * users)[0] == 500
    sizes = storm(pace, 20_000, lambda users: 12 + 0.004 * users)
    assert min(sizes[:-1]) >= 150, sizes


def test_at_the_floor_it_finds_out_whether_more_users_would_cost_more() -> None:
    pace = Pace(CEILING, FLOOR)
    pace.ran_out_of_time(500, 6000)
    assert pace.size == FLOOR
    assert storm(pace, 5000, lambda users: 12 + 0.004 * users)[-2] >= 150
    pace.ran_out_of_time(500, 6000)
    assert max(storm(pace, 200, lambda users: 4.0 * users)) <= 2 * FLOOR


def test_what_once_was_slow_to_start_is_not_so_for_ever() -> None:
    pace = Pace(CEILING, FLOOR)
    pace.finished(1, 60)
    sizes = storm(pace, 4000, lambda users: 1 + 0.15 * users)
    assert sizes[-2] < 100, sizes


@pytest.mark.parametrize(("users", "seconds", "size"), [(500, 120, 41), (100, 9, 500)])
def test_a_run_that_was_given_up_late_was_too_large(users: int, seconds: float, size: int) -> None:
    pace = Pace(CEILING, FLOOR)
    pace.ran_out_of_time(users, seconds)
    assert pace.size == size


def test_no_sequence_of_runs_is_trouble() -> None:
    pace = Pace(CEILING, FLOOR)
    for users, seconds in ((1, 0.0), (500, 0.0), (5, 1.0), (10, 1.0), (6, 30.0), (5, 1.0)):
        pace.finished(users, seconds)
        assert FLOOR <= pace.size <= CEILING
