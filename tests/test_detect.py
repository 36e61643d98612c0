"""The program, run as a user runs it."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import flagless
import numpy as np
import pytest
import tiny_bundle
import tiny_video

from memvid_tf.errors import Interrupted, Interruptions
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.runners import FrameResult, SyncRunner, Timings
from memvid_tf.runtime.schedules import FixedSchedule
from memvid_tf.runtime.video import VideoWriter, open_source
from memvid_tf.runtime.windowed import WindowResult

ROOT = Path(__file__).resolve().parents[1]
program = flagless.program("memvid_tf.detect")


def command(*flags, **named):
    named = {"bundle": tiny_bundle.build("int8"), **named}
    named = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return [sys.executable, "-m", "memvid_tf.detect", *named, *flags]


def detect(*flags, **named):
    """Runs the program: exit code, standard output, and the lines on stderr that are its own."""
    done = subprocess.run(command(*flags, **named), cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, own_lines(done.stderr)


def own_lines(stderr):
    # LiteRT announces its delegate, which cannot be muted.
    noise = "INFO: Created TensorFlow Lite"
    return [line for line in stderr.splitlines() if line and not line.startswith(noise)]


@pytest.fixture
def folder(tmp_path):
    """A folder with 12 frames that no graph fits exactly."""
    path = tmp_path / "frames"
    path.mkdir()
    for number, frame in enumerate(tiny_bundle.frames(12, (40, 72))):
        cv2.imwrite(str(path / f"{number}.png"), frame[..., ::-1])
    return path


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "frames")


def test_detections_and_video_of_a_folder(tmp_path, folder):
    code, out, lines = detect(
        video=folder, json=tmp_path / "found.jsonl", output=tmp_path / "boxes.webm", tau=4, fps=12.5
    )
    assert (code, lines) == (0, []) and left(tmp_path) == ["boxes.webm", "found.jsonl"]
    assert "12 frames" in out and "effective tau 4.00" in out and "f0 on 3 frames" in out
    assert out.splitlines()[2:] == [
        f"written: {tmp_path / 'found.jsonl'}", f"written: {tmp_path / 'boxes.webm'}",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    runner = SyncRunner(InterleavedDetector(tiny_bundle.load()), FixedSchedule(4))
    with open_source(folder) as source:
        results = list(runner.run(frame.image for frame in source))
    for index, (row, result) in enumerate(zip(rows, results, strict=True)):
        assert row["frame"] == index and row["time_s"] == index / 12.5
        assert row["extractor"] == result.extractor
        assert row["memory_age_frames"] == index % 5
        found = row["detections"]
        labels = [tiny_bundle.LABELS[label] for label in result.detections.classes]
        assert [one["label"] for one in found] == labels
        # Five decimals are written.
        boxes, scores = ([one[name] for one in found] for name in ("box", "score"))
        np.testing.assert_allclose(boxes, np.clip(result.detections.boxes, 0, 1), atol=6e-6)
        np.testing.assert_allclose(scores, result.detections.scores, atol=6e-6)
    with open_source(tmp_path / "boxes.webm") as source:
        assert (len(list(source)), source.fps) == (12, 12.5)


def test_asynchronous_with_a_threshold_and_a_limit(tmp_path, folder):
    code, out, lines = detect(
        video=folder, json=tmp_path / "found.jsonl", mode="async", tau=1, score_threshold=0.95,
        max_frames=7,
    )  # fmt: skip
    assert (code, lines) == (0, []) and "7 frames" in out and "async" in out
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and {row["extractor"] for row in rows} == {"f1"}
    scores = [found["score"] for row in rows for found in row["detections"]]
    assert scores and min(scores) >= 0.95


FAULTS = [
    ({"bundle": "nowhere"}, "bundle nowhere: no such folder"),
    ({"video": "nothing.mp4"}, "video 'nothing.mp4': no such file or folder"),
    ({"video": "setup.py"}, "'setup.py' is not a video that FFmpeg can decode"),
    ({"tau": "often"}, "schedule 'often' is not 'f0'"),
    ({"tau": "f1", "mode": "async"}, "--tau=f1 leaves f0 out"),
    ({"output": "boxes.avi"}, "suffix '.avi' is not one of"),
    ({"json": "nowhere/found.jsonl"}, "does not exist"),
    ({"json": "/dev/null"}, "--json=/dev/null is a pipe or a device, wanted a file"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), FAULTS, ids=[text for _, text in FAULTS])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, folder, flags, message):
    given = {"video": folder, "json": tmp_path / "found.jsonl", **flags}
    code, out, lines = detect(**given)
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ") and message in lines[0]
    assert left(tmp_path) == []


def test_outputs_that_would_overwrite_something(tmp_path, folder):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"precious")
    for flags in ({"output": clip}, {"json": clip}):
        code, _, lines = detect(video=clip, **flags)
        assert code == 2 and "is the file of --video too" in lines[0]
    code, _, lines = detect(video=folder, json=folder)
    assert code == 2 and "is the file of --video too" in lines[0]
    assert clip.read_bytes() == b"precious" and left(tmp_path) == ["clip.mp4"]
    code, _, lines = detect("more", video=folder)
    assert code == 2 and "unexpected argument 'more'" in lines[0]


def test_flags_are_checked_and_explained():
    for flags in (["--mode=fast"], ["--threads=0"], ["--score_threshold=2"], ["--max_frames=x"]):
        code, _, lines = detect(*flags, video="clip.mp4")
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        assert flags[0].split("=")[0].strip("-") in lines[0]
    code, out, _ = detect("--help")
    assert code == 0 and "python -m memvid_tf.detect --bundle=" in out and "--score_threshold:" in out


def test_a_damaged_frame_keeps_those_before_it(tmp_path, folder):
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:50])
    code, out, lines = detect(
        video=folder, json=tmp_path / "found.jsonl", output=tmp_path / "boxes.mp4"
    )
    assert code == 2 and "7 frames" in out and len(lines) == 1
    assert "7.png is damaged or truncated" in lines[0] and "7 frames before are kept" in lines[0]
    assert left(tmp_path) == ["boxes.mp4", "found.jsonl"]
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 7
    assert len(list(open_source(tmp_path / "boxes.mp4"))) == 7
    (folder / "0.png").write_bytes(b"")
    (tmp_path / "found.jsonl").unlink()
    code, out, lines = detect(video=folder, json=tmp_path / "found.jsonl")
    assert (code, out) == (2, "") and "0.png" in lines[0] and left(tmp_path) == ["boxes.mp4"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_was_done(tmp_path, signum):
    """Ended in the middle for certain: the 21st frame is a pipe that nobody fills."""
    folder = tmp_path / "frames"
    folder.mkdir()
    frame = cv2.imencode(".bmp", tiny_bundle.frames(1)[0])[1].tobytes()
    for number in range(20):
        (folder / f"{number}.bmp").write_bytes(frame)
    os.mkfifo(folder / "20.bmp")
    run = subprocess.Popen(
        command(video=folder, json=tmp_path / "found.jsonl", output=tmp_path / "boxes.mp4"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what runs in the background with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    # Opening the other end waits until the program opens this one: 20 frames are done by then.
    with open(folder / "20.bmp", "wb"):
        run.send_signal(signum)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signum and "20 frames" in out
    ended = "interrupted" if signum == signal.SIGINT else f"ended by {signum.name}"
    assert own_lines(err) == [f"error: {ended} (the 20 frames before are kept)"]
    assert left(tmp_path) == ["boxes.mp4", "found.jsonl"]
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 20
    assert len(list(open_source(tmp_path / "boxes.mp4"))) == 20


def test_signals_are_put_off_and_come_once():
    with Interruptions() as interruptions:
        interruptions.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as error:
            interruptions.release()
        os.kill(os.getpid(), signal.SIGINT)  # the program is ending already
    assert error.value.signum == signal.SIGTERM
    with Interruptions(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptions():
            os.kill(os.getpid(), signal.SIGHUP)  # nohup
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nobody_reads_the_summary(tmp_path, folder):
    run = subprocess.Popen(
        command(video=folder, json=tmp_path / "found.jsonl"), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run.stdout.close()
    assert own_lines(run.stderr.read()) == [] and run.wait() == 141
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize("output", ["boxes.mp4", None])
def test_a_full_disk_keeps_what_lay_there(tmp_path, folder, output):
    for name in ("boxes.mp4", "found.jsonl"):
        (tmp_path / name).write_bytes(b"from before")
    done = subprocess.run(
        command(
            video=folder, output=output and tmp_path / output,
            json=None if output else tmp_path / "found.jsonl", score_threshold=0.0,
        ),
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = own_lines(done.stderr)
    what = "boxes.mp4 cannot be written" if output else "the outputs cannot be written"
    assert f"{what}: File too large; nothing of this run is kept, earlier files stay" in line
    assert left(tmp_path) == ["boxes.mp4", "found.jsonl"]
    assert {file.read_bytes() for file in tmp_path.glob("*.*")} == {b"from before"}


def test_lines_and_video_have_the_times_of_the_video(tmp_path):
    tiny_video.encode(tmp_path / "clip.mp4", tiny_bundle.frames(4), (0, 33, 300, 4967))
    code, _, lines = detect(
        video=tmp_path / "clip.mp4", json=tmp_path / "found.jsonl", output=tmp_path / "boxes.mp4"
    )
    assert (code, lines) == (0, [])
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["time_s"] for row in rows] == [0, 0.033, 0.3, 4.967]
    times = [frame.time_s for frame in open_source(tmp_path / "boxes.mp4")]
    np.testing.assert_allclose(times, [0, 0.033, 0.3, 4.967], atol=1e-5)


def test_boxes_are_cut_at_the_edges_and_masks_are_counted():
    found = Detections(
        np.array([[-0.02, 0.1, 0.5, 1.0375]], np.float32), np.ones(1, np.float32),
        np.zeros(1, np.int32),
    )  # fmt: skip
    timings = Timings(0, 0, 0, 0, 1.0)
    row = program.json_line(FrameResult(0, found, "f0", 0, None, timings), 0.5, ("disc",))
    assert row["time_s"] == 0.5 and row["detections"][0]["box"] == [0.0, 0.1, 0.5, 1.0]
    summary = program.Summary()
    for share in (1, 3):
        mask = np.arange(8).reshape(2, 4) < share
        ages = np.zeros((1, 1), np.int32)
        summary.add(WindowResult(0, None, mask, None, (0, 0, 1, 1), ages, timings))
    text = summary.text("full", 1.0)
    assert "2 frames, masks of 25.0% of a frame (mean)" in text and "detections" not in text


def test_a_real_video(tmp_path, fixtures_dir):
    video = fixtures_dir / "tflite" / "lstm_traffic" / "traffic_frames.mp4"
    code, out, lines = detect(video=video, output=tmp_path / "boxes.mp4")
    assert (code, lines) == (0, []) and "20 frames" in out and "effective tau 9.00" in out
    with open_source(tmp_path / "boxes.mp4") as source:
        shapes = [frame.image.shape for frame in source]
    assert source.fps == 30.0 and shapes == [(540, 960, 3)] * 20
    # An older file of the same name is replaced only by a whole one.
    with VideoWriter(tmp_path / "boxes.mp4", 10) as writer:
        writer.write(np.zeros((20, 20, 3), np.uint8), 0.0)
    code, _, _ = detect(video=tmp_path / "nothing.mp4", output=tmp_path / "boxes.mp4")
    assert code == 2 and len(list(open_source(tmp_path / "boxes.mp4"))) == 1
