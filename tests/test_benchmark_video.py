"""The page that sets video beside ffmpeg's; the programs ffmpeg and ffprobe are not needed here."""

import flagless
import pytest

from memvid_tf import errors

program = flagless.program("benchmarks.video")


def test_the_page_says_what_differs():
    kind = {
        "frames": [40, 40, 40, 40], "pixel": 0, "differing_frames": 0, "time_s": 3e-7,
        "index_s": 1.5, "written_s": 5e-6,
    }  # fmt: skip
    result = {
        "ffmpeg": 7,
        "kinds": {"variable": kind, "short": {**kind, "frames": [39, 40, 40, 39], "pixel": 12}},
        "left_out": ["AV1"],
        "frames_a_processor_second": {"reading": [100.0, 300.0, 200.0]},
        "provenance": {
            "machine": {"processor": "a processor"}, "date": "2026-12-01", "code_version": "1",
        },
    }  # fmt: skip
    page = program.markdown(result)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert ["variable", "40", "0", "0", "0.000000", "1.500", "0.000005"] in rows
    assert ["short", "39/40/40/39", "12", "0", "0.000000", "1.500", "0.000005"] in rows
    assert ["reading", "200"] in rows and "Left out for want of an encoder: AV1." in page


def test_without_ffmpeg_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(errors.UserError, match="ffmpeg is not installed"):
        program.major_version()
