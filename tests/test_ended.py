"""A training that is past its end is told from its folder alone."""

import subprocess
import sys

import pytest
import yaml

from memvid_tf.tasks import ended

SAVED = {
    "task": {"name": "interleaved", "seed": 3, "model": {"image_size": [16, 32]}, "labels": ["a"]},
    "trainer": {"train_steps": 30, "loss_upper_bound": 0.5},
}
PAIRS = "trainer.train_steps=30,task.model.image_size=[16,32]"


@pytest.fixture
def folder(tmp_path):
    """The --model_dir of a training of 30 steps."""
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "ckpt-30"\nall_model_checkpoint_paths: "ckpt-28"\n'
    )
    (tmp_path / "ckpt-30.index").write_text("")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SAVED))
    return tmp_path


def test_the_program_says_so_without_tensorflow(folder):
    code = (
        "import sys, runpy; sys.modules['tensorflow'] = None; sys.modules['official'] = None; "
        "runpy.run_module('memvid_tf.train', run_name='__main__', alter_sys=True)"
    )
    flags = [f"--model_dir={folder}", f"--params_override={PAIRS}"]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"nothing to do: {folder} has reached step 30 of 30; raise trainer.train_steps or choose "
        "another --model_dir\n"
    )


def test_what_was_asked_for_before_is_at_its_end(folder):
    file = folder / "mine.yaml"
    file.write_text("task: {seed: 3}\ntrainer: {train_steps: 30}")
    other = folder / "other.yaml"
    other.write_text("trainer: {train_steps: 90}")
    for files, pairs in ([], PAIRS), ([file], ""), ([other, file], "task.seed=3"):
        assert "step 30 of 30" in ended.early_message(str(folder), "interleaved", files, pairs)
    # Fewer steps than there were.
    found = ended.early_message(str(folder), "interleaved", [other], "trainer.train_steps=20")
    assert "step 30 of 20" in found


@pytest.mark.parametrize(
    "experiment, pairs",
    [
        ("interleaved", "trainer.train_steps=31"),
        ("interleaved", "trainer.train_steps=30,task.seed=4"),
        ("interleaved", "trainer.train_steps=30,task.model.image_size=[32,16]"),
        ("interleaved", "trainer.train_steps=30,task.sead=3"),
        ("interleaved", "trainer.train_steps=30,task.seed"),
        ("interleaved", "trainer.train_steps=many"),
        ("interleaved", "task.seed=3"),  # the experiment's number of steps
        ("detector", PAIRS),
    ],
)
def test_anything_else_is_left_to_those_who_know_the_configuration(folder, experiment, pairs):
    assert ended.early_message(str(folder), experiment, [], pairs) is None


def test_folders_in_which_nothing_is_at_its_end(folder, tmp_path):
    assert ended.message(str(folder), 30) and ended.message(str(folder), 31) is None
    assert ended.early_message(str(tmp_path / "new"), "interleaved", [], PAIRS) is None
    missing = ended.early_message(str(folder), "interleaved", [folder / "gone.yaml"], PAIRS)
    assert missing is None
    (folder / "ckpt-30.index").unlink()  # damaged: training says so
    assert ended.reached(str(folder)) == 0 and ended.message(str(folder), 30) is None
    (folder / "checkpoint").write_bytes(b"\xff\xfe")
    assert ended.reached(str(folder)) == 0
