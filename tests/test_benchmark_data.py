"""The measurement of input pipeline and evaluators: what it counts, and what its page says."""

import flagless
import painted
import pytest

from memvid_tf.data import records

data = flagless.program("benchmarks.data")


@pytest.mark.slow
def test_it_measures_every_way_of_reading(tmp_path):
    info = records.read_info(painted.write_set(tmp_path / "set"))
    result = data.measure(info, clips=13, repeats=2, frames=700, detections=5)
    # Whole batches of twelve, whole clips of three hundred frames.
    assert (result["clips"], result["frames"]) == (24, 600)
    assert set(result["clips_a_second"]) == set(data.WAYS)
    for name, seconds in result["seconds"].items():
        assert len(seconds) == 2 and min(seconds) > 0
        assert result["clips_a_second"][name] == pytest.approx(24 / (sum(seconds) / 2))
    assert set(result["score_seconds"]) == {"plain", "size_dependent"}


def test_the_page_repeats_the_numbers():
    page = data.markdown(
        {
            "data_set": "davis2016",
            "clips": 24,
            "frames": 600,
            "detections": 5,
            "clips_a_second": {"limit": 80.0, "plain": 40.0, "augmented": 16.0},
            "score_seconds": {"plain": 0.03, "size_dependent": 0.06},
            "provenance": {
                "machine": {"processor": "a chip"},
                "date": "today",
                "code_version": "1",
            },
        }
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    assert ["JPEG decoding alone", "80.0", "1.00"] in rows
    assert ["windows with SSD's patches, flips and colours", "16.0", "5.00"] in rows
    assert ["size_dependent", "0.1", "100"] in rows
    assert "a chip, today, version 1" in page
