"""`inspectord journal verify | export | stats` as a person or a script uses them."""

import csv
import json
import os
import subprocess
import sys

import pytest
from helpers_daemon import make_message
from helpers_journal import change

from inspectord.cli import main
from inspectord.health import Health
from inspectord.journal import Journal
from inspectord.messages import Reason, Verdict

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """Two cameras, 1 to 9 January, a superseded row, and part ids that are formulas."""
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    journal = Journal(path, 100, Health())
    for seq in range(1, 10):
        at = f"2026-01-{seq:02d}T12:00:00.000+00:00"
        part_id = FORMULAS[seq - 1] if seq <= len(FORMULAS) else f'p "{seq}", 5\n'
        verdict = Verdict.REJECT if seq == 4 else Verdict.PASS
        latency_ms = 100.0 if seq == 9 else float(seq)
        values = {"decided_at": at, "verdict": verdict, "latency_ms": latency_ms}
        journal.put(make_message(seq, part_id=part_id, boxes=((1, 2, 3, 4),), **values))
        journal.put(make_message(seq, camera="cam2", **values))
    late = {"verdict": Verdict.NOT_INSPECTED, "reason": Reason.NOT_JOURNALED, "score": None}
    journal.put(make_message(9, camera="cam2", decided_at="2026-01-09T12:00:01.000+00:00", **late))
    journal.close()
    return path, journal.head


def exported(journal, tmp_path, *options):
    output = tmp_path / "out.csv"
    assert main(["journal", "export", str(journal), "--output", str(output), *options]) == 0
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_verify_says_what_it_found_and_takes_a_head_of_a_heartbeat(journal, capsys):
    path, head = journal
    assert main(["journal", "verify", str(path), "--head", str(head)]) == 0
    said = capsys.readouterr().out
    assert f"unbroken, 19 rows (1 superseded, 0 older ones forgotten), head {head}" in said
    assert said.count("\n") == 1


def test_verify_of_a_changed_journal_is_exit_code_65_and_one_line(journal, tmp_path, capsys):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(journal[0].read_bytes())
    change(path, "UPDATE verdicts SET verdict = 'PASS' WHERE verdict = 'REJECT'")
    assert main(["journal", "verify", str(path)]) == 65
    error = capsys.readouterr().err
    assert "row 7 is not as it was written" in error
    assert error.count("\n") == 1
    assert main(["journal", "verify", str(path), "--head", "nonsense"]) == 65


def test_the_journal_of_the_configuration_is_the_default(journal, tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text(
        f'state_dir = "{journal[0].parent}"\n[[cameras]]\nname = "cam1"\nrecipe = "demo"\n'
        'source = {kind = "line"}\n'
    )
    assert main(["journal", "verify", "--config", str(config)]) == 0
    assert "19 rows" in capsys.readouterr().out


def test_a_csv_holds_every_row_and_no_cell_is_a_formula(journal, tmp_path):
    rows = exported(journal[0], tmp_path)
    assert len(rows) == 19
    mine = [row for row in rows if row["camera"] == "cam1"]
    assert [row["part_id"] for row in mine[: len(FORMULAS)]] == [f"'{text}" for text in FORMULAS]
    assert mine[-1]["part_id"] == 'p "9", 5\n'
    assert not any(value.startswith(("=", "+", "@", "\t", "\r")) for row in rows for value in row.values())
    assert (mine[0]["boxes"], mine[0]["score"], mine[0]["encoder"]) == ("[[1,2,3,4]]", "0.25", "100")
    assert [row["superseded"] for row in rows[-2:]] == ["true", "false"]
    assert (rows[-1]["hash"], rows[-1]["score"]) == (journal[1].hash, "")


@pytest.mark.parametrize(
    ("options", "seqs"),
    [
        (["--from", "2026-01-03", "--to", "2026-01-05"], [3, 4, 5]),
        (["--from", "2026-01-03T13:00", "--to", "2026-01-05T12:00+00:00"], [4]),
        (["--from", "2026-01-03T13:30+02:00", "--to", "2026-01-03"], [3]),
        (["--from", "2027-01-01"], []),
    ],
)
def test_dates_select_whole_days_in_utc(journal, tmp_path, options, seqs):
    rows = exported(journal[0], tmp_path, "--camera", "cam1", *options)
    assert [int(row["seq"]) for row in rows] == seqs


def test_parquet_holds_the_same_with_types(journal, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "out.parquet"
    command = ["journal", "export", str(journal[0]), "--format", "parquet", "--output", str(output)]
    assert main(command) == 0
    table = parquet.read_table(output).to_pylist()
    assert len(table) == 19
    assert table[0]["part_id"] == "=1+1"  # nothing runs formulas here
    assert table[0]["decided_at"].isoformat() == "2026-01-01T12:00:00+00:00"
    assert (table[0]["latency_ms"], table[0]["simulated"], table[-1]["score"]) == (1.0, True, None)


def test_parquet_without_pyarrow_is_one_clear_error(journal, tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None; import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'pyarrow' else f(name, *a)\n"
        "from inspectord.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["journal", "export", str(journal[0]), "--format", "parquet", "--output", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "pip install pyarrow" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(journal, tmp_path, capsys):
    broken = tmp_path / "journal.sqlite"
    broken.write_bytes(journal[0].read_bytes())
    change(broken, "UPDATE verdicts SET message = 'nonsense' WHERE id = 19")
    output = tmp_path / "out.csv"
    output.write_text("old")
    assert main(["journal", "export", str(broken), "--output", str(output)]) == 65
    assert "row 19 holds no verdict" in capsys.readouterr().err
    assert output.read_text() == "old"
    assert [name for name in os.listdir(tmp_path) if "out" in name] == ["out.csv"]
    assert main(["journal", "export", str(journal[0]), "--output", str(tmp_path / "no" / "x.csv")]) == 73


def test_stats_count_what_was_published(journal, capsys):
    assert main(["journal", "stats", str(journal[0]), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    first, second = tables["cam1"], tables["cam2"]
    assert first["verdicts"] == {"PASS": 8, "REJECT": 1}
    assert (second["verdicts"]["NOT_INSPECTED"], second["superseded"], second["rows"]) == (1, 1, 9)
    assert second["reasons"]["not_journaled"] == 1
    assert first["recipes"] == {"demo/v1": 9}
    assert (first["first"][:10], first["last"][:10]) == ("2026-01-01", "2026-01-09")
    assert first["reject_rate"] == pytest.approx(1 / 9, abs=1e-6)
    assert first["latency_p50_ms"] == pytest.approx(5, rel=0.011)
    assert first["latency_p99_ms"] == pytest.approx(100, rel=0.011)


def test_stats_are_readable_by_people_too(journal, capsys):
    assert main(["journal", "stats", str(journal[0])]) == 0
    said = capsys.readouterr().out
    assert "camera cam1: 9 verdicts, 2026-01-01T12:00" in said
    assert "not_journaled" in said
    assert "1 more rows are superseded" in said


@pytest.mark.parametrize("command", ["verify", "stats", "export"])
def test_what_is_no_journal_is_told_in_one_line(tmp_path, capsys, command):
    path = tmp_path / "x"
    more = ["--output", str(tmp_path / "y")] if command == "export" else []
    assert main(["journal", command, str(path), *more]) == 65
    path.write_bytes(b"no database at all" * 100)
    assert main(["journal", command, str(path), *more]) == 65
    path.unlink()
    change(path, "PRAGMA user_version=1")
    assert main(["journal", command, str(path), *more]) == 65
    assert capsys.readouterr().err.count("\n") == 3


def test_a_wrong_date_is_a_wrong_command_line(journal, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["journal", "export", str(journal[0]), "--output", str(tmp_path / "x"), "--from", "yesterday"])
    assert "is no date" in capsys.readouterr().err
