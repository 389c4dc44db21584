"""The order of roles."""

from __future__ import annotations

import pytest

from ansible_bootstrap.storage._plan import BUILT_IN_ROLES, COLLECTION, PlanRefusedError, make_plan


def names(part: list[dict[str, str]]) -> list[str]:
    return [role["name"] for role in part]


def test_the_three_parts():
    plan = make_plan(
        [
            "user_dir",
            {"role": "tutorials", "on_failure": "continue"},
            "datasets",
            {"role": "quota", "per": "batch"},
        ]
    )
    assert names(plan["before"]) == [f"{COLLECTION}.user_dir", f"{COLLECTION}.tutorials"]
    assert names(plan["each"]) == ["datasets"]
    assert names(plan["after"]) == ["quota"]
    assert [role["on_failure"] for role in plan["before"]] == ["block", "continue"]


def test_nothing_to_do():
    assert make_plan([]) == {"before": [], "each": [], "after": []}


@pytest.mark.parametrize("name", BUILT_IN_ROLES)
def test_ours_are_always_called_in_full_and_for_the_whole_batch(name):
    for entry in (name, f"{COLLECTION}.{name}", {"role": name, "per": "batch"}):
        (role,) = make_plan([entry])["before"]
        assert role["name"] == f"{COLLECTION}.{name}"
        assert role["role"] == name
        assert role["per"] == "batch"


def test_what_would_be_ignored_is_refused():
    with pytest.raises(PlanRefusedError, match="always takes the whole batch"):
        make_plan([{"role": "user_dir", "per": "user"}])


def test_an_order_that_a_play_cannot_keep_is_refused_not_changed():
    with pytest.raises(PlanRefusedError, match="last is applied user by user but comes after user_dir"):
        make_plan(["first", "user_dir", "last"])


@pytest.mark.parametrize("name", ["my_role", "site.roles.datasets", "a-b", "_x"])
def test_names_of_roles(name):
    assert names(make_plan([name])["each"]) == [name]


@pytest.mark.parametrize(
    "roles",
    ["user_dir", {"role": "user_dir"}, 7, None, [7], [None], [["user_dir"]], [{}], [{"role": 7}], [{"role": "a", "when": "x"}],
     [{"role": "a", "per": "host"}], [{"role": "a", "on_failure": "ignore"}], [""], ["../a"], ["/a"], ["a b"], ["a\n"],
     ["{{ a }}"], ["a..b"], ["a.b.c.d.e"], ["-a"], ["a/b"]],
)  # fmt: skip
def test_what_is_no_list_of_roles(roles):
    with pytest.raises(PlanRefusedError):
        make_plan(roles)
