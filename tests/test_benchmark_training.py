"""The benchmark of a training step: it runs, and its page holds what its turns returned."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from memvid_tf.data import sharding, synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "interleaved_tiny.yaml"
# The smallest network and the shortest turns: this is about the program, not about speed.
TINY = (
    "task.model.depth_multiplier_f0=0.25,task.model.state_channels=16,task.model.head_depth=16,"
    "task.model.maps=1,task.train_data.global_batch_size=2,task.train_data.unroll_frames=2,"
    "trainer.steps_per_loop=2,trainer.summary_interval=2"
)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.training", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config_file is missing"),
        (["configs"], "unexpected argument 'configs'"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.slow
def test_the_page_holds_what_the_turns_returned(tmp_path):
    config = dataclasses.replace(synthetic.PRESETS["tiny"], train_clips=3, test_clips=1)
    sharding.write_dataset(tmp_path / "set", synthetic.plan(config), workers=0)
    result = run(
        f"--config_file={CONFIG}",
        f"--params_override=task.train_data.input_path={tmp_path / 'set'},{TINY}",
        "--loops=2",
        "--warm_up_steps=1",
        "--repeats=2",
        f"--output={tmp_path / 'results' / 'training'}",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "results"
    assert {path.name for path in folder.iterdir()} == {"training.json", "training.md"}
    text = (folder / "training.json").read_text()
    assert str(tmp_path) not in text and str(REPOSITORY) not in text
    written, page = json.loads(text), (folder / "training.md").read_text()
    assert page in result.stdout
    assert written["steps"] == 4 and written["setting"]["data_set"] == "synthetic"
    assert written["setting"]["config_files"] == ["interleaved_tiny.yaml"]
    assert written["provenance"]["packages"]["tensorflow"]

    turns = written["turns"]
    assert {len(of) for of in turns.values()} == {2}
    ms = {
        name: np.array([turn["step_ms"] for turn in turns[name]])
        for name in ("bare", "trainer", "trainer_input", "single_steps")
    }
    summary = written["summary"]
    for name, values in ms.items():
        assert summary["step_ms"][name] == pytest.approx(
            {"median": np.median(values), "least": values.min(), "most": values.max()}
        )
        assert f"{np.median(values):.1f}" in page
    for name, base in (
        ("trainer", "bare"),
        ("trainer_input", "trainer"),
        ("single_steps", "trainer_input"),
    ):
        ratio = summary["ratios"][name]
        assert ratio["over"] == base
        assert ratio["median"] == pytest.approx(np.median(ms[name] / ms[base]))
        assert f"{ratio['median']:.3f}" in page
    of_input = summary["input"]
    alone = np.median([turn["clips_per_second"] for turn in turns["input_alone"]])
    needed = 2 / np.median(ms["trainer"]) * 1e3
    assert of_input["alone_over_needed"] == pytest.approx(alone / needed)
    assert 0 < of_input["waiting_share"] < 1
    assert f"{100 * of_input['waiting_share']:.2f} %" in page

    # Turns are comparable: they train on the same data from the same weights, so the trainer's
    # loss is the bare loop's, up to the rounding of two compilations, which five steps of Adam
    # may enlarge, and each repeats itself exactly.
    loss = {
        name: [turn["loss"] for turn in turns[name]]
        for name in ("bare", "trainer", "trainer_input")
    }
    for values in loss.values():
        assert values[0] == values[1]
    assert loss["trainer"] == pytest.approx(loss["bare"], rel=1e-3)
    assert loss["trainer_input"][0] != loss["trainer"][0]
