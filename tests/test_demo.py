"""The demo: what it announces, what it shows at once, how it fails, and what it leaves."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from benchmarks import demo, pipeline, sheets
from memvid_tf import errors
from memvid_tf.data import records, synthetic
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.schedules import FixedSchedule

# Any import of TensorFlow fails.
WITHOUT = "import sys, runpy; sys.modules['tensorflow'] = None; "
DEMO = WITHOUT + "runpy.run_module('benchmarks.demo', run_name='__main__', alter_sys=True)"


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A demo whose first step cannot write its data: the folder, and how it ended."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").write_text("mine")
    flag = f"--output_dir={folder}"
    done = subprocess.run(
        [sys.executable, "-c", DEMO, flag], cwd=pipeline.ROOT, capture_output=True, text=True
    )
    return folder, done


def parts(text):
    """The plan, what is said of the picture, and the steps."""
    plan, _, rest = text.partition("\na first look")
    look, _, steps = rest.partition("\n\n")
    return plan, look, steps


def test_it_begins_with_a_plan_and_a_picture_and_needs_no_tensorflow_for_them(failed):
    folder, done = failed
    plan, look, first = parts(done.stdout)
    for step in demo.steps(str(folder))[1]:
        assert step.title in plan and step.minutes > 0
    assert demo.MEASURED_ON in plan
    assert f"{folder}/first_look.png" in look and first.startswith("[1/")
    picture = cv2.imread(f"{folder}/first_look.png")
    # Two rows of four frames, four times as large.
    assert picture.shape == (2 * (384 + 30 + 6), 4 * (384 + 6), 3)


def test_a_step_that_fails_ends_in_a_line(failed):
    folder, done = failed
    assert done.returncode == 2
    # After what LiteRT says of itself, and a bar that wiped itself out.
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1
    wanted = rf"error: step 1 of \d+, synthetic video set, .*{folder}/data.*; log: (\S+)"
    log = re.fullmatch(wanted, line)[1]
    assert os.path.dirname(log) == str(folder) and os.path.getsize(log)
    assert (folder / "data").read_text() == "mine"


def test_the_readme_says_how_long_it_takes():
    total = pipeline.minutes(sum(step.minutes for step in demo.steps("demo")[1]))
    readme = open(f"{pipeline.ROOT}/README.md", encoding="utf-8").read()
    assert f"about {total.removesuffix(' min')} minutes on two cores" in readme
    assert sum(demo.MINUTES.values()) <= 15


def test_the_summary_names_everything_that_was_left(tmp_path):
    run, todo = demo.steps(str(tmp_path))
    bundle = tmp_path / "bundles" / "int8"
    shutil.copytree(demo.READY_BUNDLE, bundle)
    (tmp_path / "results").mkdir()
    scores = dict(zip(demo.MODES, (0.75, 0.125, 0.5, 0.25)))
    results = {"modes": {mode: {"mean_ap": value} for mode, value in scores.items()}}
    (tmp_path / "results/float.json").write_text(json.dumps(results))
    report = {"mAP": {"bundle": {mode: value / 2 for mode, value in scores.items()}}}
    (bundle / "report.json").write_text(json.dumps(report))
    measured = f"{pipeline.ROOT}/benchmarks/results/host_paper.json"
    shutil.copy(measured, tmp_path / "results/host.json")
    text, titles = demo.summary(run), tuple(demo.MODES.values())
    rows = [line.split() for line in text.splitlines() if line.startswith(titles)]
    accuracies = [[float(value) for value in row[-4:-2]] for row in rows]
    assert accuracies == [[0.75, 0.375], [0.125, 0.062], [0.5, 0.25], [0.25, 0.125]]
    assert all(float(ms) > 0 for row in rows for ms in row[-2:])
    assert f"{demo.FLOAT_STEPS} + {demo.QAT_STEPS} training steps" in text
    assert str(tmp_path / "first_look.png") in text
    for step in todo:
        for name in ("output", "output_dir", "model_dir", "json"):
            assert str(step.flags.get(name, "")) in text


# Sheets.


def test_the_truth_is_what_the_data_set_holds():
    """In reverse, since what is in front comes last there."""
    config = synthetic.SyntheticConfig(test_clips=2, test_clip_frames=3)
    clip, record = sheets.rendered(config, 1), synthetic.make_clip(config, "test", 1)
    assert len(clip.frames) == len(clip.truth) == 3 and sum(map(len, record.classes)) > 3
    for objects, boxes, classes in zip(clip.truth, record.boxes, record.classes):
        np.testing.assert_array_equal(objects.boxes, boxes[::-1])
        np.testing.assert_array_equal(objects.classes, classes[::-1] - 1)


def test_f1_is_shown_without_textures():
    bundle = Bundle.load(demo.READY_BUNDLE)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (96, 96, 3), np.uint8)
    np.testing.assert_array_equal(sheets.given(bundle, frame, "f0"), frame)
    seen = sheets.given(bundle, frame, "f1").reshape(48, 2, 48, 2, 3)
    mean = frame.reshape(48, 2, 48, 2, 3).mean((1, 3))
    np.testing.assert_allclose(seen, np.broadcast_to(mean[:, None, :, None], seen.shape), atol=0.5)


@pytest.mark.parametrize("tau, shown", [(9, [10, 11, 15, 19]), (1, [2, 3]), (0, [1])])
def test_a_period_goes_from_f0_to_the_oldest_memory(tau, shown):
    assert sheets.period(tau) == shown
    schedule = FixedSchedule(tau)
    assert [schedule.pick(frame) for frame in shown] == ["f0", *["f1"] * (len(shown) - 1)]


@pytest.mark.parametrize("preset", ["demo", "eventful"])
def test_a_set_is_known_by_what_it_wrote_of_itself(preset):
    config = synthetic.PRESETS[preset]
    made = json.loads(json.dumps(synthetic.plan(config).config))
    info = records.DatasetInfo("set", "synthetic", (), (96, 96), made, 0, {})
    assert sheets.config_of(info) == config
    with pytest.raises(errors.UserError, match="set is the set 'davis2016', not a synthetic one"):
        sheets.config_of(dataclasses.replace(info, name="davis2016"))


def test_a_sheet_without_a_set_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    output = tmp_path / "x.png"
    flags = [f"--bundle={demo.READY_BUNDLE}", f"--input={tmp_path}/set", f"--output={output}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sheets", *flags],
        cwd=pipeline.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "dataset.json does not exist" in done.stderr
    assert not output.exists()
