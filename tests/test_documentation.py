"""What README and guides tell a reader to type is accepted, and what they point at is there.

Programs are run up to their `main`, so that a flag is checked by the program that defines it.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from accepted import OURS, check

from benchmarks import demo
from export import verify
from memvid_tf.data import conversion, records, sharding
from memvid_tf.models import zoo
from memvid_tf.models.deeplab import Segmenter, SegmenterConfig
from memvid_tf.models.mobilenet_v2 import BACKBONES, Stage
from memvid_tf.models.single_frame import SingleFrameConfig, SingleFrameDetector
from memvid_tf.tasks import configuration, single_frame, training  # noqa: F401  (registers)

ROOT = zoo.ROOT
GUIDES = (
    "configs/README.md", "export/README.md", "benchmarks/README.md", "memvid_tf/models/README.md"
)  # fmt: skip
PAGES = ("README.md", *GUIDES)

every_page = pytest.mark.parametrize("page", PAGES)


# Reading pages.


def parts(text: str) -> list[tuple[str | None, str]]:
    """A page as (language, text) of fenced blocks, ("", text) of indented ones, and (None, text) of
    what lies between."""
    found = []

    def add(language, line):
        if found and found[-1][0] == language:
            line = found.pop()[1] + line
        found.append((language, line))

    fence = None
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            found.append((None, ""))
        elif fence is not None:
            add(fence, line)
        elif not line.strip() and found:
            add(found[-1][0], line)
        else:
            add("" if line.startswith("    ") else None, line)
    return found


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of blocks of code; "" where they name none."""
    return [(language, body) for language, body in parts(text) if language is not None]


def prose(text: str) -> str:
    """What is no block of code, on one line."""
    return " ".join("".join(body for language, body in parts(text) if language is None).split())


def lines(text: str) -> list[str]:
    """Lines of code, continued ones joined, and code within sentences."""
    code = "\n".join(block for _, block in blocks(text)).replace("\\\n", " ")
    return [line.strip() for line in code.splitlines()] + re.findall(r"`([^`]+)`", prose(text))


def commands(text: str) -> list[str]:
    """Everything that begins with `python -m`."""
    return [line for line in lines(text) if line.startswith("python -m ")]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def block_of(page: str, language: str, word: str) -> str:
    """The block of a page in a language that holds a word."""
    (found,) = [body for kind, body in blocks(read(page)) if kind == language and word in body]
    return found


# What a reader is told to add, for as long as a page is checked.


def street_layout():
    """The layout that configs/README.md shows. In a module, so that workers find its class."""
    namespace = {"__name__": __name__}
    exec(block_of("configs/README.md", "python", "class Street"), namespace)
    return namespace["Street"]


@contextlib.contextmanager
def as_a_reader(page: str, folder: Path):
    """The checkout of a reader who did what a page says: with the layout, and in a folder with the
    YAML files that it shows."""
    written = {}
    for kind, body in blocks(read(page)):
        if kind == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", body)[1]
            (folder / name).write_text(body)
            written[name] = str(folder / name)
    with mock.patch.dict(conversion.LAYOUTS, {"street": street_layout()}):
        yield written


# Checking commands.


@every_page
def test_every_command_is_accepted(page, tmp_path):
    found = commands(read(page))
    assert len(found) >= 2
    with as_a_reader(page, tmp_path) as made:
        for command in found:
            check(command, made)


def test_every_step_of_the_demo_is_accepted():
    for step in demo.steps("demo")[1]:
        check(f"python {shlex.join(step.command)}")
    # The table at the end takes them from the report of the verification.
    assert set(demo.MODES) <= set(verify.MODES)


def test_every_command_of_the_pages_of_networks_is_accepted():
    """Among them those that made the ready bundles."""
    pages = (ROOT / "benchmarks" / "results" / "models").glob("*.md")
    found = {command for page in pages for command in commands(page.read_text(encoding="utf-8"))}
    assert len(found) > len(zoo.ENTRIES)
    for command in sorted(found):
        check(command)


@pytest.mark.parametrize(
    "command, message",
    [
        ("python -m memvid_tf.trian --model_dir=runs/tiny", "memvid_tf.trian"),
        ("python -m nothing_of_the_kind", "nothing_of_the_kind"),
        ("python -m memvid_tf.train --modeldir=runs/tiny", "modeldir"),
        ("python -m memvid_tf.train --mode=validate", "validate"),
        ("python -m export --tau=nine", "nine"),
        ("python -m memvid_tf.detect --bundle=bundles/tiny", "video"),
        ("python -m benchmarks.plan --frames=3", "frames"),
        ("python -m benchmarks.host bundles/tiny", "bundles/tiny"),
        ("python -m memvid_tf.data shwo --input=data/synthetic", "shwo"),
        ("python -m memvid_tf.data show --dataset=coco2017", "takes no"),
        ("python -m memvid_tf.data convert --dataset=imagenet", "imagenet"),
        ("python -m memvid_tf.models.zoo show interleved", "interleved"),
        ("python -m memvid_tf.train --experiment=interleved", "interleved"),
        ("python -m memvid_tf.train --config_file=configs/interleaved_tny.yaml", "_tny.yaml"),
        ("python -m memvid_tf.train --params_override=task.sed=1", "task.sed"),
        ("python -m memvid_tf.train --params_override=task.seed=one", "task.seed"),
        ("python -m memvid_tf.evaluate --bundle=bundles/tiny --modes=f0,f2", "f2"),
        ("python -m pytest tests/test_nothing.py", "test_nothing"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(command, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(command)


# Checking what pages point at.


def missing_files(text: str) -> list[str]:
    """Paths of the repository in a page that are not there."""
    tops = "|".join((*OURS, "configs", "tests"))
    found = re.findall(rf"(?<![\w./-])((?:{tops})/[\w./*-]*[\w*])", text)
    return [
        path
        for path in found
        if not any(list(ROOT.glob(path + suffix)) for suffix in ("", ".json"))
    ]


def missing_links(page: str, text: str) -> list[str]:
    """Links of a page to a file or a heading that is not there."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or heading and heading not in headings(target.read_text()):
            wrong.append(link)
    return wrong


def headings(text: str) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_every_file_and_link_is_there(page):
    text = read(page)
    assert not missing_files(text)
    assert not missing_links(page, text)
    targets = re.findall(r"^([a-z.-]+):.*##", read("Makefile"), re.MULTILINE)
    for line in lines(text):
        if line.startswith("make "):
            assert line.split()[1] in targets, line


def test_a_file_or_a_link_that_is_not_there_is_found():
    text = "`memvid_tf/runtime/manifst.py`, [a](gone.md), [b](#nowhere), [c](../README.md#measurng)"
    assert missing_files(text) == ["memvid_tf/runtime/manifst.py"]
    assert missing_links("configs/README.md", text) == [
        "gone.md", "#nowhere", "../README.md#measurng"
    ]  # fmt: skip
    good = "`configs/*_qat.yaml`, [a](README.md), [c](../README.md#measuring)"
    assert not missing_files(good) and not missing_links("configs/README.md", good)


def test_the_readme_links_every_guide():
    for guide in GUIDES:
        assert f"]({guide})" in read("README.md")


def test_pages_are_read_as_a_reader_does():
    text = (
        "A `python -m\nexport --tau=9` in a line.\n\n"
        "    python -m memvid_tf.data check \\\n      --input=a  # why\n\n    ls\n\n"
        "```yaml\n# a.yaml\nx: 1\n```\n\n1. Then:\n\n       python -m benchmarks.host\n"
    )
    assert [shlex.split(c, comments=True)[2:] for c in commands(text)] == [
        ["memvid_tf.data", "check", "--input=a"],
        ["benchmarks.host"],
        ["export", "--tau=9"],
    ]
    assert ("yaml", "# a.yaml\nx: 1\n") in blocks(text)


# Following pages.


def test_the_first_minute(tmp_path):
    """The commands under that heading but those of the zoo, which test_zoo.py runs."""
    section = read("README.md").partition("## In the first minute")[2].partition("\n## ")[0]
    for top in ("memvid_tf", "configs"):
        (tmp_path / top).symlink_to(ROOT / top)
    ours = [command for command in commands(section) if "models.zoo" not in command.split()[2]]
    assert len(ours) == 6
    for command in ours:
        words = shlex.split(command, comments=True)
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    for video in ("seen.mp4", "windows.mp4"):
        assert (tmp_path / video).stat().st_size > 10_000


def test_the_layout_of_the_guide_converts(tmp_path):
    """Two videos, one of which has nothing in its second half."""
    rng = np.random.default_rng(5)
    for split, frames in (("train", 9), ("test", 4)):
        folder = tmp_path / "street" / split / "corner"
        folder.mkdir(parents=True)
        for frame in range(frames):
            image = rng.integers(0, 256, (40, 60, 3), np.uint8)
            cv2.imwrite(str(folder / f"{frame:06d}.jpg"), image)
            objects = [
                {"class": "car", "track": 3, "box": [4, 6, 20, 36]},
                {"class": "bus", "track": 1, "box": [10, 30, 40, 60]},
            ]
            kept = objects if frame < frames / 2 else []
            (folder / f"{frame:06d}.json").write_text(json.dumps(kept))
    layout = street_layout()(tmp_path / "street")
    assert not list(layout.findings("train"))
    config = conversion.ConversionConfig(image_size=(20, 30), clip_frames=9)
    plan = conversion.plan(layout, config)
    info, _ = sharding.write_dataset(str(tmp_path / "data"), plan, workers=0)
    assert list(info.labels) == ["car", "bus"]
    (clip,) = records.pick_clips(info, "train", [0])
    np.testing.assert_allclose(clip.boxes[0], [[0.1, 0.1, 0.5, 0.6], [0.25, 0.5, 1, 1]], atol=1e-6)
    assert [list(classes) for classes in clip.classes] == [[1, 2]] * 5 + [[]] * 4


def test_the_configuration_of_the_guide_is_of_its_data(tmp_path):
    with as_a_reader("configs/README.md", tmp_path) as made:
        tiny = str(ROOT / "configs/interleaved_tiny.yaml")
        task = configuration.load("interleaved", [tiny, made["street.yaml"]]).task
        assert task.model.num_classes == len(street_layout().labels)
    sizes = {tuple(s.image_size) for s in (task.model, task.train_data, task.validation_data)}
    assert sizes == {(96, 160)} and "--image_size=96,160" in read("configs/README.md")


def test_the_backbone_of_the_guide_makes_networks():
    with mock.patch.dict(BACKBONES):
        code = block_of("memvid_tf/models/README.md", "python", "BACKBONES")
        exec(code, {"BACKBONES": BACKBONES, "Stage": Stage})
        cases = (SingleFrameDetector, SingleFrameConfig, 8), (Segmenter, SegmenterConfig, 4)
        for network, kind, stride in cases:
            config = kind(image_size=(128, 128), backbone="small")
            assert network(config).backbone.stride == stride  # the segmenter drops the last


def test_the_task_of_the_guide_is_an_experiment():
    class MineConfig(SingleFrameConfig):
        """Stands for a reader's own."""

    code = block_of("memvid_tf/models/README.md", "python", "MineTaskConfig")
    exec(code, {**vars(single_frame), "MineConfig": MineConfig})
    params = configuration.load("mine", pairs="trainer.train_steps=100")
    assert type(params.task.model) is MineConfig and params.task.name == "mine"
