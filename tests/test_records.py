"""Clip records, `dataset.json`, the restartable writer and the program around them."""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import cv2
import killing
import numpy as np
import pytest

from memvid_tf.data import records, sharding
from memvid_tf.data.records import ClipRecord, DatasetError
from memvid_tf.errors import UserError

SIZE = (20, 30)


def random_clip(index, frames=4):
    rng = np.random.default_rng(index)
    clip = ClipRecord(f"clip-{index}", *SIZE)
    for t in range(frames):
        count = int(rng.integers(0, 4)) if t else 2
        corner = rng.uniform(0, 0.5, (count, 2))
        picture = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        clip.add_frame(
            image=cv2.imencode(".png", picture)[1].tobytes(),
            boxes=np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (count, 2))], axis=1),
            classes=rng.integers(1, 4, count),
            tracks=rng.permutation(9)[:count],
            mask=b"" if t % 2 else cv2.imencode(".png", picture[..., 0])[1].tobytes(),
        )
    return clip


def make_random_clip(split, index):
    return random_clip(index + 1000 * (split == "test"))


def random_plan(make_clip=make_random_clip, **changes):
    plan = sharding.DatasetPlan(
        name="random",
        labels=["a", "b", "c"],
        image_size=SIZE,
        config={"flavour": 1},
        seed=3,
        splits={"train": sharding.SplitPlan(10, 4), "test": sharding.SplitPlan(3, 4)},
        make_clip=make_clip,
        shard_clips=3,
    )
    return dataclasses.replace(plan, **changes)


@pytest.fixture(name="dataset")
def fixture_dataset(tmp_path):
    sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)
    return tmp_path / "set"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_record_comes_back_as_it_was():
    clip = random_clip(7, frames=6)
    again = records.deserialize(records.serialize(clip))
    assert (again.clip_id, again.height, again.width) == ("clip-7", 20, 30)
    assert (again.source_height, again.source_width) == (0, 0)
    clip.source_height, clip.source_width = 200, 301
    again = records.deserialize(records.serialize(clip))
    assert (again.source_height, again.source_width) == (200, 301)
    assert again.images == clip.images and again.masks == clip.masks
    for name in ("boxes", "classes", "tracks"):
        for a, b in zip(getattr(again, name), getattr(clip, name), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype and a.shape == b.shape


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": [1]}, "2 boxes, 1 classes and 2 tracks"),
        ({"boxes": [[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 1]]}, "positive extents"),
        ({"boxes": [[0, 0, 0.5, 0.5], [0, 0, 1.5, 1]]}, r"in \[0, 1\]"),
        ({"boxes": [[0, 0, 0.5, 0.5], [0, 0, np.nan, 1]]}, r"in \[0, 1\]"),
        ({"classes": [0, 1]}, "classes count from 1"),
    ],
)
def test_wrong_frames_are_named(change, message):
    good = {"image": b"", "boxes": [[0, 0, 0.5, 0.5]] * 2, "classes": [1, 2], "tracks": [0, 1]}
    with pytest.raises(ValueError, match=f"clip x frame 0: .*{message}"):
        ClipRecord("x", *SIZE).add_frame(**{**good, **change})


def test_bytes_that_are_no_clip_are_refused():
    import tensorflow as tf

    with pytest.raises(DatasetError, match="no SequenceExample"):
        records.deserialize(b"\xff\xff nonsense")
    with pytest.raises(DatasetError, match="lacks clip/id"):
        records.deserialize(tf.train.SequenceExample().SerializeToString())


def test_the_writer_follows_the_contract(dataset):
    data = json.loads((dataset / "dataset.json").read_text())
    assert {k: data[k] for k in ("schema_version", "name", "labels", "image_size", "seed")} == {
        "schema_version": 1,
        "name": "random",
        "labels": ["a", "b", "c"],
        "image_size": [20, 30],
        "seed": 3,
    }
    train = data["splits"]["train"]
    assert (train["clips"], train["frames"], train["clip_frames"]) == (10, 40, 4)
    assert [s["file"] for s in train["shards"]][0] == "train-00000-of-00004.tfrecord"
    assert sorted(s["clips"] for s in train["shards"]) == [2, 2, 3, 3]
    listed = {s["file"] for split in data["splits"].values() for s in split["shards"]}
    assert {path.name for path in dataset.iterdir()} == listed | {"dataset.json", "SHA256SUMS"}
    # As `sha256sum -c` reads it.
    for line in (dataset / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((dataset / name).read_bytes()).hexdigest() == digest
    for shard in train["shards"]:
        assert (dataset / shard["file"]).stat().st_size == shard["bytes"]
        assert sharding._sha256(dataset / shard["file"]) == shard["sha256"]
    info = records.read_info(dataset)
    assert [clip.clip_id for clip in records.read_clips(info, "train")] == [
        f"clip-{i}" for i in range(10)
    ]


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, dataset):
    made = []

    def breaks(split, index):
        if (split, index) == ("train", 7):
            raise KeyboardInterrupt
        made.append((split, index))
        return make_random_clip(split, index)

    def notes(split, index):
        made.append((split, index))
        return make_random_clip(split, index)

    folder, seen = tmp_path / "again", []
    with pytest.raises(KeyboardInterrupt):
        sharding.write_dataset(folder, random_plan(breaks), workers=0)
    assert not folder.exists()
    made.clear()
    _, found = sharding.write_dataset(folder, random_plan(notes), workers=0, advance=seen.append)
    assert not found
    # Ten clips in four shards end at 2, 5, 7, 10: three were whole, the fourth starts with 7.
    assert made == [("train", i) for i in range(7, 10)] + [("test", i) for i in range(3)]
    assert sum(seen) == 13
    assert contents(folder) == contents(dataset)
    assert not (tmp_path / "again.partial").exists()


def test_an_unfinished_run_of_something_else_is_refused(tmp_path):
    def breaks(split, index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharding.write_dataset(tmp_path / "set", random_plan(breaks), workers=0)
    with pytest.raises(
        DatasetError,
        match="set.partial is an unfinished run of another "
        "configuration: config.flavour is 1, asked for 2",
    ):
        sharding.write_dataset(tmp_path / "set", random_plan(config={"flavour": 2}), workers=0)


def test_a_damaged_finished_shard_is_found_on_restart(tmp_path):
    def breaks(split, index):
        if split == "test":
            raise KeyboardInterrupt
        return make_random_clip(split, index)

    with pytest.raises(KeyboardInterrupt):
        sharding.write_dataset(tmp_path / "set", random_plan(breaks), workers=0)
    shard = tmp_path / "set.partial" / "train-00001-of-00004.tfrecord"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="train-00001-of-00004.tfrecord is damaged"):
        sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)


def test_the_same_set_is_found_and_another_refused(dataset):
    before = contents(dataset)

    def never(split, index):
        raise AssertionError("a clip was made")

    info, found = sharding.write_dataset(dataset, random_plan(never), workers=0)
    assert found and info.splits["train"].clips == 10
    for change, message in (
        ({"seed": 4}, "seed is 3, asked for 4"),
        ({"labels": ["a", "b", "d"]}, "labels is"),
        ({"splits": {"train": sharding.SplitPlan(10, 4)}}, "splits.test is {.clips.: 3"),
    ):
        with pytest.raises(DatasetError, match=f"holds another data set: {message}"):
            sharding.write_dataset(dataset, random_plan(never, **change), workers=0)
    assert contents(dataset) == before


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match="exists and is no data set"):
        sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match="holds thesis.tex but no plan.json"):
        sharding.write_dataset(tmp_path / "other", random_plan(), workers=0)
    assert (tmp_path / "other.partial" / "thesis.tex").read_text() == "precious"


def test_two_writers_of_one_set_do_not_mix(tmp_path):
    def meddles(split, index):
        with pytest.raises(UserError, match=r"set' is in use by process \d+ since .*; wait for it"):
            sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)
        return make_random_clip(split, index)

    sharding.write_dataset(tmp_path / "set", random_plan(meddles), workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_a_conversion_survives_death_at_every_step(tmp_path, monkeypatch):
    """The set is whole or not there, and what the restart makes again is one shard at most."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a process dies, not the machine
    folder, made, again = tmp_path / "set", [], []

    def notes(split, index):
        made.append(index)
        return make_random_clip(split, index)

    plan = random_plan(notes, splits={"train": sharding.SplitPlan(3, 4)}, shard_clips=1)
    sharding.write_dataset(tmp_path / "whole", plan, workers=0)
    expected = contents(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    made.clear()

    def look(step):
        complete = folder.exists()
        if complete:
            assert contents(folder).items() >= expected.items(), step
        before = len(made)
        made.clear()
        _, found = sharding.write_dataset(folder, plan, workers=0)
        again.append(before + len(made) - 3)
        assert contents(folder) == expected and os.listdir(tmp_path) == ["set"], step
        assert found == complete, step
        shutil.rmtree(folder)
        made.clear()

    steps = killing.every_step(
        monkeypatch, lambda: sharding.write_dataset(folder, plan, workers=0), look
    )
    assert steps > 40 and set(again) == {0, 1}
    assert again[-12:] == [0] * 12, "dataset.json and what follows repeat no shard"
    assert contents(folder) == expected


def test_a_full_disk_ends_a_conversion_in_one_line(tmp_path):
    """And with room it goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises((DatasetError, OSError), match="cannot be written|cut short|too large"):
            sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "set").exists()
    info, _ = sharding.write_dataset(tmp_path / "set", random_plan(), workers=0)
    assert len(list(records.read_clips(info, "train"))) == 10


def test_a_missing_set_says_how_to_make_one(tmp_path):
    command = "python -m memvid_tf.data synthetic --output="
    with pytest.raises(DatasetError, match=f"nothing does not exist; .*{command}"):
        records.read_info(tmp_path / "nothing")
    (tmp_path / "stray.txt").write_text("")
    with pytest.raises(DatasetError, match=f"the folder holds stray.txt; .*{command}"):
        records.read_info(tmp_path)
    with pytest.raises(DatasetError, match="stray.txt is a file"):
        records.read_info(tmp_path / "stray.txt")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(schema_version=2), "has schema version 2, this code reads 1"),
        (lambda d: d.pop("labels"), "key 'labels' is missing"),
        (
            lambda d: d["splits"]["train"]["shards"][0].pop("bytes"),
            r"key 'splits.train.shards\[0\].bytes' is missing",
        ),
        (lambda d: d["splits"]["train"].update(clips="6"), "train.clips is '6', wanted a whole"),
        (lambda d: d.update(image_size=[20, float("inf")]), "Infinity is not a JSON number"),
        (lambda d: d.update(image_size=[20, 10**9]), r"image_size \(20, 1000000000\) is not in 1"),
        (lambda d: d.update(labels=["a", "a", "b"]), "labels 'a, a, b' are none, or one is"),
        (lambda d: d.update(labels=["x", "b", "c"]), "objects_by_class of train has other classes"),
        (lambda d: d["splits"]["test"].update(statistics={}), "of test lack the number 'objects'"),
        (lambda d: d["splits"]["test"].update(frames=0), "test has 3 clips of up to 4 frames, 0"),
        (lambda d: d["splits"]["train"].update(shards=[7]), r"train.shards\[0\] is 7, wanted an o"),
        (lambda d: d.update(colour=1), "unknown key 'colour'"),
        (
            lambda d: d["splits"]["train"]["shards"][0].update(file="../../passwd"),
            "plain file name",
        ),
        (lambda d: d["splits"]["train"].update(clips=11), "do not add up to 11 clips"),
    ],
)
def test_a_wrong_description_is_named(dataset, change, message):
    data = json.loads((dataset / "dataset.json").read_text())
    change(data)
    (dataset / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message):
        records.read_info(dataset)


def test_a_description_that_is_no_json_is_named(dataset):
    for content in (b"{", b"\xff\xfe", b"", b'{"a":' * 100_000, b"[" * 100_000):
        (dataset / "dataset.json").write_bytes(content)
        with pytest.raises(DatasetError, match="dataset.json cannot be used: ") as error:
            records.read_info(dataset)
        assert len(str(error.value)) < 600


def test_missing_and_truncated_shards_are_named(dataset):
    info = records.read_info(dataset)
    with pytest.raises(DatasetError, match="no split 'val'; it has test, train"):
        info.split("val")
    shard = dataset / "train-00002-of-00004.tfrecord"
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    with pytest.raises(DatasetError, match=f"00002.* has {len(data) - 10} bytes, .*{len(data)}"):
        info.shard_paths("train")
    # The right size and wrong bytes: the records' checksums tell.
    shard.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    with pytest.raises(DatasetError, match="00002-of-00004.tfrecord is damaged"):
        list(records.read_clips(info, "train"))
    shard.unlink()
    with pytest.raises(DatasetError, match="00002-of-00004.tfrecord is missing"):
        info.shard_paths("train")


# --- The program --------------------------------------------------------------------------------


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", "memvid_tf.data", *arguments],
        timeout=120,
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.slow
def test_the_program_makes_and_shows_a_set(tmp_path):
    folder, picture = tmp_path / "set", tmp_path / "sheet.png"
    arguments = [
        "synthetic",
        f"--output={folder}",
        "--preset=tiny",
        "--train_clips=3",
        "--test_clips=2",
        "--seed=5",
        "--workers=1",
    ]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "train: 3 clips, 24 frames" in done.stdout
    info = records.read_info(folder)
    assert info.config["seed"] == 5 and len(info.labels) == 8
    assert "found as it should be" in run(tmp_path, *arguments).stdout
    done = run(
        tmp_path, "show", f"--input={folder}", f"--output={picture}", "--clips=1,0", "--frames=3"
    )
    assert done.returncode == 0, done.stderr
    # Two rows and three columns of 96 px frames enlarged three times, with gaps.
    height, width, _ = cv2.imread(str(picture)).shape
    assert 2 * 288 <= height < 2 * 300 and 3 * 288 <= width < 3 * 300
    done = run(tmp_path, "check", f"--input={folder}")
    assert (done.returncode, done.stdout.strip()) == (0, "nothing is wrong"), done.stderr
    shard = folder / "test-00000-of-00001.tfrecord"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    done = run(tmp_path, "check", f"--input={folder}")
    assert done.returncode == 1 and "1 x shard that is damaged (make the data" in done.stdout
    shard.write_bytes(data)
    frames = tmp_path / "frames"
    done = run(tmp_path, "frames", f"--input={folder}", f"--output={frames}", "--clips=1")
    assert done.returncode == 0, done.stderr
    stored = records.pick_clips(info, "test", [1])[0].images
    assert [path.read_bytes() for path in sorted(frames.glob("*.*g"))] == stored
    (frames / "mine.txt").write_text("precious")
    refused = (frames, "holds mine.txt, which came later"), (folder, "no frames of ours")
    for output, message in refused:
        before = {path: path.read_bytes() for path in output.iterdir()}
        done = run(tmp_path, "frames", f"--input={folder}", f"--output={output}", "--clips=0")
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert {path: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["paint"], "command 'paint' is not one of synthetic, convert, check, show, frames"),
        (["synthetic"], "synthetic needs --output"),
        (["synthetic", "--output=x", "--num_classes=3"], "--num_classes 3 is not allowed"),
        (["synthetic", "--output=x", "--train_part=.5"], "--train_part is not a flag of synthetic"),
        (
            ["convert", "--output=x", "--source=."],
            "convert needs --dataset and --source, e.g. --data",
        ),
        (
            ["convert", "--output=x", "--dataset=davis2016", "--source=nowhere"],
            "source nowhere is not a folder",
        ),
        (["check"], "check needs --dataset and --source"),
        (["show", "--output=x.png", "--input=nowhere"], "nowhere does not exist; make a data set"),
        (["show", "--output=x.gif", "--input=nowhere"], "must end in .png or .jpg"),
        (["frames", "--output=x", "--input=nowhere"], "nowhere does not exist; make a data set"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, message):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
