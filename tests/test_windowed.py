"""Patchwork bundles behind the same program: what it looks at, finds and draws."""

import json

import cv2
import flagless
import numpy as np
import pytest
import tiny_bundle
import tiny_patchwork
from test_detect import detect as run_program

from memvid_tf.errors import UserError
from memvid_tf.runtime.annotate import annotate_windows
from memvid_tf.runtime.patchwork import PatchworkNetwork
from memvid_tf.runtime.windowed import Random, Scanning, WindowRunner

detect = flagless.program("memvid_tf.detect")

FRAME = (80, 100)  # fits no graph


@pytest.fixture(scope="module")
def bundles():
    return {kind: tiny_patchwork.exported(kind)[1] for kind in tiny_patchwork.KINDS}


def video(count, seed=0):
    return tiny_bundle.frames(count, FRAME, seed)


def test_policies():
    assert [Scanning(4).pick(t) for t in range(1, 7)] == [0, 1, 2, 3, 0, 1]
    first, second = ([policy.pick(t) for t in range(1, 400)] for policy in (Random(9), Random(9)))
    assert first == second
    counts = np.bincount(first, minlength=9)
    # 44 on average, with a standard deviation of 6.3.
    assert len(counts) == 9 and counts.min() > 20


def test_scanning_looks_at_the_windows_in_turn_and_detects(bundles):
    bundle = bundles["detector"]
    results = list(WindowRunner(bundle, "scanning").run(iter(video(12))))
    assert [r.action for r in results] == [None, *range(9), 0, 1]
    assert results[0].window == (0, 0, 1, 1)
    assert results[6].window == (0.25, 0.5, 0.75, 1.0)  # action 5: second row, third column
    network = PatchworkNetwork(bundle)
    frames = [network.prepare(frame) for frame in video(12)]
    _, memory = network.first(frames[0])
    for t, image in enumerate(frames[1:], 1):
        network.step(image, results[t].action, memory)
        np.testing.assert_array_equal(results[t].ages_frames, memory.ages_frames)
    found = results[-1].detections
    assert results[-1].mask is None and len(found.scores) == len(found.boxes)
    # A second video starts over.
    runner = WindowRunner(bundle, "random")
    assert [r.action for r in runner.run(video(5))] == [r.action for r in runner.run(video(5))]


def test_masks_have_the_size_of_the_frame_and_the_sign_of_the_logits(bundles):
    bundle = bundles["segmenter"]
    results = list(WindowRunner(bundle, "scanning").run(video(3)))
    network = PatchworkNetwork(bundle)
    outputs, memory = network.first(network.prepare(video(3)[0]))
    logits = outputs["mask_logits"][0, :, :, 0]
    assert results[0].mask.shape == FRAME and results[0].detections is None
    # The middle of a cell is nearer to its own logit than to any other.
    rows, columns = ((np.arange(n) + 0.5) * side / n for n, side in zip(logits.shape, FRAME))
    at = results[0].mask[np.ix_(rows.astype(int), columns.astype(int))]
    clear = np.abs(logits) > 0.5 * np.abs(logits).max()
    assert clear.any()
    np.testing.assert_array_equal(at[clear], logits[clear] > 0)


def test_what_is_drawn(bundles):
    frame = np.full((*FRAME, 3), 90, np.uint8)
    *_, result = WindowRunner(bundles["segmenter"], "scanning").run(video(3))
    result = result._replace(mask=np.arange(FRAME[1])[None].repeat(FRAME[0], 0) < 50)
    image = annotate_windows(frame, result, ("foreground",))
    assert image.shape[:2] == (320, 400) and np.all(frame == 90)
    # Action 1 is the upper right quarter; its frame is red, the mask is green.
    assert image[100, 200].tolist() == [230, 40, 40]
    assert image[250, 150, 1] > image[250, 150, 0] + 40
    assert image[250, 300].tolist() == [90, 90, 90]


def test_the_program_runs_both_kinds(bundles, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(video(6)):
        cv2.imwrite(str(folder / f"{number}.png"), frame[..., ::-1])
    for kind, key in (("detector", "detections"), ("segmenter", "foreground")):
        found, drawn = tmp_path / f"{kind}.jsonl", tmp_path / f"{kind}.webm"
        code, out, lines = run_program(
            bundle=bundles[kind].path, video=folder, json=found, output=drawn
        )
        assert (code, lines) == (0, []), lines
        assert "6 frames" in out and "scanning, no part of a frame older than" in out
        rows = [json.loads(line) for line in found.read_text().splitlines()]
        assert [row["frame"] for row in rows] == list(range(6))
        assert rows[0]["window"] == [0, 0, 1, 1] and rows[0]["oldest_frames"] == 0
        assert all(key in row and "extractor" not in row for row in rows)
        assert drawn.stat().st_size > 0


def test_modes_of_the_other_system_are_refused(bundles):
    windowed, interleaved = bundles["detector"], tiny_bundle.load()
    assert detect.default_mode(windowed, None) == "scanning"
    assert detect.default_mode(interleaved, None) == "sync"
    with pytest.raises(UserError, match="--mode=async: a bundle of 'patchwork' has one of"):
        detect.default_mode(windowed, "async")
    with pytest.raises(UserError, match="--mode=random: a bundle of 'interleaved'"):
        detect.default_mode(interleaved, "random")
    with pytest.raises(UserError, match="has no attention network"):
        detect.make_runner(windowed, "dqn", None, None, 1)
    with pytest.raises(UserError, match="--tau and --max_tau are of extractors"):
        detect.make_runner(windowed, "random", "4", None, 1)
