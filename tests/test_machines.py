"""The page of machines: what it makes of results, and what it keeps of earlier ones."""

import copy
import subprocess
import sys

import flagless

machines = flagless.program("benchmarks.machines")

MADE = {
    "date": "2030-01-02T03:04:05+00:00",
    "code_version": "0.1.0+abc",
    "packages": {"tensorflow": "2.20.0"},
    "machine": {"processor": "Some CPU", "vector_units": ["avx2"], "onednn": "0", "cores": 2},
}


def part(found):
    return {"load_average": 0.25, "provenance": copy.deepcopy(MADE), "found": found}


def test_junit_counts_by_outcome(tmp_path):
    path = tmp_path / "suite.xml"
    path.write_text(
        """<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="5">
        <testcase classname="a" name="fine"/><testcase classname="a" name="other"/>
        <testcase classname="a" name="wrong"><failure message="no"/></testcase>
        <testcase classname="b" name="broken"><error message="no"/></testcase>
        <testcase classname="b" name="left"><skipped message="no phone"/></testcase>
        </testsuite></testsuites>"""
    )
    found = machines.counts(str(path))
    assert found == {"passed": 2, "failed": 2, "skipped": 1, "names": ["a.wrong", "b.broken"]}


def test_steps_are_compared_within_their_row_and_failures_are_shown():
    now = {"0": [20.0, 10.0, 40.0], "1": [50.0]}
    before = {"0": "fails: no gradient", "1": [100.0, 200.0, 150.0]}
    found = {
        "now": {"float": now, "quantization-aware": now},
        "before": {"float": before, "quantization-aware": before},
    }
    header, rows = machines._of_steps(found)
    assert [dict(zip(header, row)) for row in rows[:2]] == [
        {
            "training": "float",
            "oneDNN": "0",
            "ms a step": "20",
            "steps a second": "50.0",
            "ms before": "fails: no gradient",
            "now / before": "",
            "over oneDNN 0": "1.00",
        },
        {
            "training": "float",
            "oneDNN": "1",
            "ms a step": "50",
            "steps a second": "20.0",
            "ms before": "150",
            "now / before": "0.33",
            "over oneDNN 0": "2.50",
        },
    ]


def test_a_setting_keeps_the_other_one_and_other_machines_stay():
    ran = {"minutes": 9.0, "passed": 3, "failed": 0, "skipped": 1, "names": [], "provenance": MADE}
    first = machines.merged({"other": {}}, {"suite": part({"0": ran})})
    both = machines.merged(first, {"suite": part({"1": {**ran, "minutes": 12.0}})})
    (found,) = (parts for machine, parts in both.items() if machine != "other")
    assert set(both) == {"other", "Some CPU, avx2"}
    assert {s: one["minutes"] for s, one in found["suite"]["found"].items()} == {"0": 9, "1": 12}
    del both["other"]
    page = machines.markdown(both)
    assert "Some CPU, 2 cores; vector units: avx2" in page
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "|" in line]
    assert [row[1:6] for row in rows[2:]] == [
        ["0", "3", "0", "1", "9.0"],
        ["1", "3", "0", "1", "12.0"],
    ]


def test_a_checkout_that_is_none_is_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.machines", f"--before={tmp_path}"]
    ended = subprocess.run(command, cwd=machines.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == f"error: --before={tmp_path} is no checkout; it has no setup.py\n"
