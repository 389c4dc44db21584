"""A class list comes as it comes: from a text editor, a spreadsheet, another system's export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_bootstrap.cli.roster import Roster, distinct
from ansible_bootstrap.errors import RefusedError


def roster(tmp_path: Path, text: str) -> list[dict[str, object]]:
    path = tmp_path / "class"
    path.write_text(text, encoding="utf-8")
    return list(distinct(Roster(path)))


def test_a_text_roster_is_one_name_a_line(tmp_path: Path) -> None:
    assert roster(tmp_path, "# winter term\nalice\n\n  bob  \nanna.schmidt@example.org\nalice\n") == [
        {"name": "alice"},
        {"name": "bob"},
        {"name": "anna.schmidt@example.org"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_roster_has_typed_columns(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["Username", "uid", "gid", "groups", "directory"],
        ["alice", "2001", "100", "a|b", "/v/alice"],
        ["bob"],
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    text = text.replace("a|b", '"a;b"')
    assert roster(tmp_path, text) == [
        {"name": "alice", "uid": 2001, "gid": 100, "groups": ["a", "b"], "directory": "/v/alice"},
        {"name": "bob"},
    ]


def test_a_quoted_header_is_one(tmp_path: Path) -> None:
    assert roster(tmp_path, '"name","uid"\n"alice","2001"\n') == [{"name": "alice", "uid": 2001}]


def test_csv_without_a_header_is_told_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="a first line that names the columns"):
        roster(tmp_path, "alice,2001\nbob,2002\n")


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "class.csv"
    path.write_bytes("name,uid\nzoë,2001\n".encode("utf-8-sig"))
    assert list(Roster(path)) == [{"name": "zoë", "uid": 2001}]


def test_a_bad_cell_is_kept_for_the_policy_to_refuse_with_its_row(tmp_path: Path) -> None:
    assert roster(tmp_path, "name,uid\nalice,2001\nbob,ten\n,5\n") == [
        {"name": "alice", "uid": 2001},
        {"name": "bob", "uid": "ten"},
        {"name": "", "uid": 5},
    ]


def test_rows_of_nothing_but_empty_cells_are_no_users(tmp_path: Path) -> None:
    """A spreadsheet exports them."""
    assert roster(tmp_path, "name,uid\nalice,1\n,\n , \nbob,2\n") == [
        {"name": "alice", "uid": 1},
        {"name": "bob", "uid": 2},
    ]
    assert roster(tmp_path, "uid,name\n1,alice\n \n,,\n2,bob,,\n") == [
        {"name": "alice", "uid": 1},
        {"name": "bob", "uid": 2},
    ]


def test_a_cell_too_many_or_too_few_is_kept_for_the_policy_to_refuse_with_its_row(tmp_path: Path) -> None:
    assert roster(tmp_path, "uid,name\n1,alice,x\n2\n") == [
        {"uid": 1, "name": "alice", "surplus cell": ["x"]},
        {"uid": 2, "name": []},
    ]


def test_columns_of_another_systems_export_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert roster(tmp_path, "Username,First name,Email,Email\nalice,Alice,a@b.c,\n") == [{"name": "alice"}]
    (line,) = caplog.messages
    assert "'first name', 'email', 'email'" in line and "those that do are name, key" in line


@pytest.mark.parametrize(
    ("column", "meant"), [("directroy", "directory"), ("group", "groups"), ("storage host", "storage_host")]
)
def test_a_column_that_is_misspelt_is_not_left_out(tmp_path: Path, column: str, meant: str) -> None:
    with pytest.raises(RefusedError, match=f"did you mean '{meant}'"):
        roster(tmp_path, f"name,{column}\nalice,5\n")


def test_of_the_same_record_twice_the_first_counts_and_a_contradiction_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "class"
    path.write_text("name,uid\nalice,1\nbob,2\n\nalice,3\nbob,2\n")
    lines = Roster(path)
    for _ in range(2):
        assert list(distinct(lines)) == [{"name": "alice", "uid": 1}, {"name": "bob", "uid": 2}]
    (line,) = caplog.messages
    assert "line 5: 'alice' stands in line 2 with other columns" in line


def test_an_empty_cell_of_groups_says_that_there_are_none(tmp_path: Path) -> None:
    assert roster(tmp_path, "name,groups,uid\nalice,,\nbob\n") == [
        {"name": "alice", "groups": []},
        {"name": "bob"},
    ]


@pytest.mark.parametrize("rows", [1, 50_000])
def test_a_quote_that_is_never_closed_is_an_error_and_not_one_endless_name(tmp_path: Path, rows: int) -> None:
    with pytest.raises(RefusedError, match="not CSV"):
        roster(tmp_path, 'name,groups\nalice,"' + "x,y\n" * rows)


def test_an_endless_name_costs_only_its_row(tmp_path: Path) -> None:
    endless = "x" * 200_000
    assert roster(tmp_path, f"name\n{endless}\nbob\n") == [{"name": endless}, {"name": "bob"}]


def test_a_directory_is_refused_and_a_pipe_is_read(tmp_path: Path) -> None:
    """As in ``--roster <(ldapsearch …)``."""
    with pytest.raises(RefusedError, match="Is a directory"):
        Roster(tmp_path)
    reader, writer = os.pipe()
    os.write(writer, b"alice\nbob\n")
    os.close(writer)
    assert list(Roster(Path(f"/dev/fd/{reader}"))) == [{"name": "alice"}, {"name": "bob"}]
    os.close(reader)


@pytest.mark.parametrize("column", ["storage_host", "directory", "key"])
def test_the_same_name_with_another_place_or_key_is_another_record(tmp_path: Path, column: str) -> None:
    rows = roster(tmp_path, f"name,{column}\nalice,/a\nalice,/b\nalice,/b\n")
    assert [row[column] for row in rows] == ["/a", "/b"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_roster_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "class.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"class\.txt"):
        Roster(path)


def test_a_header_without_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not CSV"):
        roster(tmp_path, 'name,"' + "x\n" * 100_000 + "\nalice,1\n")


def test_the_name_of_a_column_may_have_any_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert roster(tmp_path, f"name,{'x' * 200_000}\nalice,1\n") == [{"name": "alice"}]
    assert len(caplog.messages[0]) < 1000


def test_a_number_of_thousands_of_digits_costs_only_its_row(tmp_path: Path) -> None:
    rows = roster(tmp_path, f"name,uid\nalice,{'9' * 5000}\nbob,2001\n")
    assert rows == [{"name": "alice", "uid": "9" * 5000}, {"name": "bob", "uid": 2001}]


@pytest.mark.parametrize("header", ["Name,Username", "username,name", "name,uid,UID"])
def test_two_columns_for_the_same_are_not_guessed_at(tmp_path: Path, header: str) -> None:
    with pytest.raises(RefusedError, match="two columns are"):
        roster(tmp_path, f"{header}\nAlice Doe,alice,1\n")
