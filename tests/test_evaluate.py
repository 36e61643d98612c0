"""The evaluation program on checkpoints and bundles, and what it adds up."""

import csv
import json
import math
import os
import re

import numpy as np
import pytest
import tiny_run

import memvid_tf
from memvid_tf.data import clips
from memvid_tf.evaluation import rollout, scoring
from memvid_tf.evaluation.vid_map import VidMap
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.manifest import BoxCoder
from memvid_tf.runtime.runners import SyncRunner
from memvid_tf.runtime.schedules import FixedSchedule


def evaluate(**flags):
    return tiny_run.program("memvid_tf.evaluate", **flags)


def read(path):
    # Strict: a NaN would be no JSON.
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


def check_result(result, modes, **wanted):
    """The form of a results file."""
    for name, value in wanted.items():
        assert result[name] == value, name
    assert result["data"] == {"input_path": tiny_run.data(), "split": "test"}
    assert result["matching"] == "plain" and result["seed"] == tiny_run.FLOAT["task"]["seed"]
    made = result["provenance"]
    assert made["code_version"].startswith(memvid_tf.__version__)
    assert made["packages"]["tensorflow"] and made["date"] and made["machine"]["cores"] >= 1
    assert list(result["modes"]) == modes
    for mode in result["modes"].values():
        counts = mode["counts"]
        assert counts["clips"] == tiny_run.TEST_CLIPS
        assert counts["frames"] == tiny_run.TEST_CLIPS * tiny_run.TEST_FRAMES
        per_class = [ap for ap in mode["per_class_ap"].values() if ap is not None]
        assert tuple(mode["per_class_ap"]) == tiny_run.LABELS
        assert mode["mean_ap"] == pytest.approx(np.mean(per_class))
        assert 0 <= mode["mean_ap"] <= 1 and set(mode["motion"]) == {"slow", "medium", "fast"}


@pytest.mark.slow
def test_a_checkpoint(tmp_path, capsys):
    modes = ["f0", "f1", "2", "async2", "2+update"]
    model_dir, output = tiny_run.float_run(), tmp_path / "results" / "float.json"
    assert evaluate(model_dir=model_dir, modes=",".join(modes), output=output) == 0
    result = read(output)
    check_result(result, modes, model_dir=model_dir, step=tiny_run.STEPS)
    accuracy = {mode: result["modes"][mode]["mean_ap"] for mode in modes}
    assert len(set(accuracy.values())) == len(modes) and max(accuracy.values()) > 0.01
    # The table says the same.
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    for row, mode in zip(rows[2:], modes, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == mode and f"{accuracy[mode]:.3f}" in cells

    # Validation during training runs whole clips unrolled, in graphs of its own; up to float32
    # rounding, which may swap two detections, it has to find the same.
    validated = tiny_run.scalars(f"{model_dir}/validation", "mAP")[tiny_run.STEPS]
    assert validated == pytest.approx(accuracy[str(tiny_run.VALIDATION_TAU)], abs=1e-3)


@pytest.mark.slow
def test_the_best_checkpoint_by_its_name(tmp_path):
    model_dir, output = tiny_run.float_run(), tmp_path / "best.json"
    best = read_best(model_dir)
    mode = str(tiny_run.VALIDATION_TAU)
    assert evaluate(model_dir=model_dir, checkpoint=best["name"], modes=mode, output=output) == 0
    result = read(output)
    assert result["step"] == best["best_ckpt_global_step"]
    assert result["modes"][mode]["mean_ap"] == pytest.approx(best["mAP"], abs=1e-3)


def read_best(model_dir):
    with open(os.path.join(model_dir, "best", "info.json"), encoding="utf-8") as file:
        info = json.load(file)
    [index] = [n for n in os.listdir(os.path.join(model_dir, "best")) if n.endswith(".index")]
    return {**info, "name": "best/" + index.removesuffix(".index")}


def accuracy_by_the_runtime(folder, tau):
    """mAP of a bundle from frames to detections by the synchronous runner alone."""
    detector = InterleavedDetector(
        Bundle.load(folder), score_threshold=scoring.SCORING.score_threshold,
        iou_threshold=scoring.SCORING.iou_threshold,
        max_detections=scoring.SCORING.max_detections,
    )  # fmt: skip
    scores = VidMap(len(tiny_run.LABELS), tiny_run.LABELS)
    data = tiny_run.params().task.validation_data
    for batch in clips.clip_dataset(data).as_numpy_iterator():
        for i, frames in enumerate(batch["frames"]):
            runner = SyncRunner(detector, FixedSchedule(tau))
            found = [r.detections for r in runner.run(frames[: batch["num_frames"][i]])]
            truth = []
            for t in range(len(found)):
                there = batch["classes"][i, t] > 0
                truth.append([batch[n][i, t][there] for n in ("boxes", "classes", "tracks")])
            scores.add_clip([(d.boxes, d.scores, d.classes + 1) for d in found], truth)
    return scores.result()


@pytest.mark.portable
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_bundle(tmp_path, precision):
    folder, output = tiny_run.bundle(precision), tmp_path / "bundle.json"
    assert evaluate(bundle=folder, modes="f0,f1,2,async1", output=output) == 0
    result = read(output)
    step = tiny_run.QAT_STEPS if precision == "int8" else tiny_run.STEPS
    check_result(result, ["f0", "f1", "2", "async1"], bundle=folder, precision=precision, step=step)
    for mode, tau in (("f0", 0), ("f1", None), ("2", 2)):
        wanted = accuracy_by_the_runtime(folder, tau)
        found = result["modes"][mode]
        assert found["mean_ap"] == pytest.approx(wanted.mean_ap, rel=1e-12)
        assert found["counts"] == wanted.counts and wanted.counts["detections"] > 20


@pytest.mark.slow
def test_a_mode_named_twice_is_scored_once(tmp_path):
    """0 is another name of f0."""
    output = tmp_path / "twice.json"
    flags = dict(modes="f0,2,0,f0", csv=tmp_path / "tables", coco="true")
    assert evaluate(bundle=tiny_run.bundle("int8"), output=output, **flags) == 0
    result = read(output)
    check_result(result, ["f0", "2"])
    # The tables repeat the JSON, video by video.
    with open(tmp_path / "tables_classes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        ap = result["modes"][row["mode"]]["per_class_ap"][row["class"]]
        assert row["ap"] == ("" if ap is None else f"{ap:.6f}")
    assert len(rows) == 2 * len(tiny_run.LABELS)
    with open(tmp_path / "tables_videos.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "2"]
    assert [row["video"] for row in rows] == [
        f"synthetic-test-{i:05d}" for i in range(tiny_run.TEST_CLIPS)
    ]
    for name in ("frames", "objects", "detections"):
        assert sum(int(row[name]) for row in rows) == result["modes"]["2"]["counts"][name]
    numbers = result["modes"]["2"]["coco"]["numbers"]
    # COCO's AP50 differs by its 101 recalls and its matching only.
    assert numbers["AP50"] == pytest.approx(result["modes"]["2"]["mean_ap"], abs=0.05)


def test_frames_that_a_clip_does_not_have_are_not_scored():
    rng = np.random.default_rng(0)
    frames, anchors = 5, rng.uniform(0.2, 0.6, [12, 4]).astype(np.float32)
    heads = rng.normal(0, 2, [frames, 12, 4]), rng.normal(0, 2, [frames, 12, 4])
    corner = rng.uniform(0, 0.4, [frames, 3, 2])
    clip = {
        "frames": np.zeros([frames, 8, 16, 3], np.uint8),
        "boxes": np.concatenate([corner, corner + 0.4], -1),
        "classes": np.array([[1, 3, 0]] * frames),
        "tracks": np.array([[0, 1, -1]] * frames),
        "num_frames": np.int32(3),
        "source_size": np.array([80, 160], np.int32),
    }
    coder = BoxCoder(10, 10, 5, 5)
    scores, wanted = VidMap(3), VidMap(3)
    found = scoring.score_clip(scores, clip, *heads, anchors, coder)
    assert len(found) == 3 and all(len(d.scores) for d in found)
    short = {name: clip[name][:3] for name in ("frames", "boxes", "classes", "tracks")}
    scoring.score_clip(wanted, {**clip, **short}, *(h[:3] for h in heads), anchors, coder)
    assert scores.result().to_json() == wanted.result().to_json()
    counts = scores.result().counts
    assert counts["frames"] == 3 and counts["objects"] == 6


def test_scoring_names_every_mode_and_tells_of_progress():
    """One pass over the data serves all modes; a clip without objects counts as a clip."""

    class Blind:
        policy = None
        f1_only_reads = False
        anchors = np.full([2, 4], 0.5, np.float32)

        def extract(self, frames, extractor):
            return len(frames)

        def initial_state(self, batch):
            return None

        def step(self, features, state, extractor):
            shape = features, len(self.anchors)
            return np.zeros([*shape, 4], np.float32), np.zeros([*shape, 4], np.float32), state

        def choose(self, first, a, b):
            return a

    def batch(clips):
        return {
            "frames": np.zeros([clips, 4, 8, 8, 3], np.uint8),
            "boxes": np.zeros([clips, 4, 1, 4], np.float32),
            "classes": np.zeros([clips, 4, 1], np.int32),
            "tracks": np.full([clips, 4, 1], -1, np.int32),
            "num_frames": np.full(clips, 4, np.int32),
            "source_size": np.full([clips, 2], 8, np.int32),
        }

    done, modes = [], [rollout.parse_mode(word) for word in ("f1", "async1", "3+update")]
    results = scoring.evaluate(
        Blind(), iter([batch(2), batch(1)]), modes, ["a", "b", "c"], BoxCoder(10, 10, 5, 5),
        advance=done.append,
    )  # fmt: skip
    assert list(results) == ["f1", "async1", "3+update"] and done == [2, 1]
    for result in results.values():
        assert (result.counts["clips"], result.counts["frames"]) == (3, 12)
        assert result.counts["objects"] == 0 and math.isnan(result.mean_ap)
        assert result.to_json()["mean_ap"] is None


# What is refused.


def refused(capfd, output, *words, **flags):
    """Exit code 2, one line that holds the words, and no results."""
    capfd.readouterr()
    assert evaluate(**flags, output=output) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("INFO: Created")]
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    for word in words:
        assert word in lines[0], lines[0]
    assert not printed.out and not output.exists()


def test_flags_that_cannot_be(tmp_path, capfd):
    output = tmp_path / "results.json"
    both = dict(model_dir=tmp_path, bundle=tmp_path)
    refused(capfd, output, "--model_dir", "--bundle")
    refused(capfd, output, "--model_dir", "--bundle", **both)
    for modes, word in (("f0,f3", "'f3'"), ("async0", "'async0'"), ("9+updates", "'9+updates'")):
        refused(capfd, output, word, bundle=tmp_path, modes=modes)
    refused(capfd, output, "--modes", bundle=tmp_path, modes="")
    refused(capfd, output, "manifest.json is missing", bundle=tmp_path)
    refused(capfd, output, "no such folder", bundle=tmp_path / "gone")
    refused(capfd, output, "params.yaml", model_dir=tmp_path)
    refused(capfd, output, "--checkpoint", bundle=tmp_path, checkpoint="ckpt-1")
    refused(capfd, output, "--coco", bundle=tmp_path, coco="true", streaming="true")


@pytest.mark.slow
def test_checkpoints_and_data_that_are_not_there(tmp_path, capfd):
    output, bundle = tmp_path / "results.json", tiny_run.bundle("int8")
    refused(
        capfd, output, "'ckpt-9'", "ckpt-30", model_dir=tiny_run.float_run(), checkpoint="ckpt-9"
    )
    refused(capfd, output, "/nowhere", "memvid_tf.data", bundle=bundle, input_path="/nowhere")
    refused(capfd, output, "'val'", "test, train", bundle=bundle, split="val")
    (tmp_path / "file").write_text("mine")
    assert evaluate(bundle=bundle, modes="f1", output=tmp_path / "file" / "x.json") == 2
    assert re.search(r"error: --output=\S*x.json cannot be written: .", capfd.readouterr().err)


@pytest.mark.slow
def test_data_that_the_network_was_not_made_for(tmp_path, capfd):
    output, bundle = tmp_path / "results.json", tiny_run.bundle("int8")
    # Class ids would mean something else there.
    fewer = tiny_run.write_data(tmp_path / "fewer", num_classes=2)
    more = tiny_run.write_data(tmp_path / "more", num_classes=8)
    crowded = tiny_run.write_data(tmp_path / "crowded", num_classes=4, min_objects=4, max_objects=5)
    assert evaluate(bundle=bundle, modes="f1", input_path=fewer) == 0  # the first of its classes
    info = tmp_path / "fewer" / "dataset.json"
    info.write_text(info.read_text().replace('"plain_disk"', '"cat"'))
    for flags in (dict(bundle=bundle), dict(model_dir=tiny_run.float_run())):
        refused(capfd, output, "checker_disk", "horizontal_disk", input_path=more, **flags)
        refused(capfd, output, "cat", "plain_disk", input_path=fewer, **flags)
    refused(capfd, output, "max_objects 2", "at least", input_path=crowded, bundle=bundle)
