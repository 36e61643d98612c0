"""The page of all claims: its steps fit the programs, and it says what the parts' results say."""

import collections
import csv
import io
import json
import math
import re
import shlex

import flagless
import pytest
from accepted import check

from benchmarks import pipeline
from benchmarks.claims import judged

papers = flagless.program("benchmarks.papers")
interleaved_papers = flagless.program("benchmarks.interleaved_papers")
baselines = flagless.program("benchmarks.baselines")
windows = flagless.program("benchmarks.windows_papers")
RESULTS = f"{pipeline.ROOT}/{papers.RESULTS}"
PROVENANCE = {"machine": {"processor": "none"}, "date": "today"}


def published() -> dict[str, dict]:
    """The results that are in the repository."""
    return {part.name: pipeline.read(f"{RESULTS}/{part.name}.json") for part in papers.PARTS}


@pytest.mark.parametrize("quick", [False, True])
def test_parts_have_what_they_need_before_them(tmp_path, quick):
    work = papers.Work("sets", str(tmp_path), str(tmp_path / "results"), quick)
    made, titles = set(), []
    for step in work.steps():
        titles.append(step.title)
        assert not step.done()
        check(shlex.join(["python", *step.command]))
        if step.module == "memvid_tf.data":
            made.add(step.flags["output"])
            assert ("test_clips" in step.flags) == quick
            continue
        assert step.flags["data"] in made and step.flags["quick"] == quick
        # The policies' detectors are those that the first part trains.
        for base in step.flags.get("base", ()):
            assert base.startswith(str(tmp_path / "interleaved_papers/factored/seed_"))
    assert len(titles) == len(set(titles)) == len(papers.PARTS) + len(papers.DATA)


def test_what_is_there_is_not_measured_again(tmp_path):
    work = papers.Work("sets", "work", str(tmp_path), quick=False)
    for part in papers.PARTS[1:]:
        (tmp_path / f"{part.name}.json").write_text("{}")
    open_steps = [step.title for step in work.steps() if not step.done()]
    assert open_steps == ["data set synthetic", work.part_step(papers.PARTS[0]).title]


def test_page_and_table_have_every_claim_of_the_parts():
    results = published()
    result = papers.collect(results) | {"provenance": PROVENANCE}
    claims = result["claims"]
    rows = list(csv.DictReader(io.StringIO(papers.csv_of(claims))))
    assert len(rows) == len(claims) > 40
    assert {row["part"] for row in rows} == {part.name for part in papers.PARTS}
    page = papers.markdown(result, "results/some")
    assert "(some_cost.svg)" in page and "say nothing" not in page
    holding = sum(row["holds"] for row in claims)
    assert f"{holding} of {len(claims)} hold" in page
    for row in claims:
        assert f"| {row['claim']} " in page
        # Text and verdict are those of the part's own page.
        own = (f"{RESULTS}/{row['part']}.md", "holds" if row["holds"] else "does not hold")
        (line,) = (
            line
            for line in open(own[0], encoding="utf-8")
            if line.startswith(f"| {row['claim']} ") and row["score"] in line
        )
        assert line.rstrip(" |\n").endswith(own[1]) and row["measured"] in line
    drawn = papers.picture(result)
    assert all(name in drawn for name in result["costs"])


@pytest.mark.parametrize(
    "rows",
    [interleaved_papers.CLAIMS, interleaved_papers.FLOW_CLAIMS, baselines.CLAIMS, windows.CLAIMS],
)
def test_claims_can_be_judged_of_networks_that_learned_nothing(rows):
    """As with --quick."""
    nothing = collections.defaultdict(float)
    found = judged(rows, [nothing])
    assert len(found) == len(rows)
    for row in found:
        assert math.isnan(row["mean"]) or row["mean"] == 0
        assert not (math.isnan(row["mean"]) and row["holds"])


def test_what_was_tried_is_said_of_every_claim_that_does_not_hold():
    claims = papers.collect(published())["claims"]
    failing = {(row["part"], row["claim"]) for row in claims if not row["holds"]}
    assert failing == set(papers.TRIED)


def test_published_page_is_that_of_the_published_results():
    page = open(f"{RESULTS}/papers.md", encoding="utf-8").read()
    result = json.loads(open(f"{RESULTS}/papers.json", encoding="utf-8").read())
    assert papers.markdown(result, "benchmarks/results/papers") == page
    assert result["claims"] == papers.collect(published())["claims"]


def test_quick_results_are_not_taken_for_evidence():
    results = published()
    results["policy"] = {**results["policy"], "quick": True}
    result = papers.collect(results) | {"provenance": PROVENANCE}
    assert re.search(r"\*\*Trained for minutes", papers.markdown(result, "some"))
