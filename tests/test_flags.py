"""The command line of the programs: help, ranges and paths, all without TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from memvid_tf import paths
from memvid_tf.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# TensorFlow cannot be imported: what is said was found before it would have been.
WITHOUT = """
import runpy, sys
sys.modules["tensorflow"] = sys.modules["official"] = None
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(module, *flags):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, module, *map(str, flags)], cwd=ROOT, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def refused(module, *flags):
    code, out, err = run(module, *flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, out + err
    return err


PROGRAMS = [
    *(ROOT / "export").glob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    ROOT / "memvid_tf" / "evaluate.py",
    ROOT / "memvid_tf" / "detect.py",
]


def test_every_numeric_flag_has_a_range():
    found = 0
    for path in PROGRAMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and hasattr(
                node.func, "attr") else ""
            if name in ("DEFINE_integer", "DEFINE_float"):
                found += 1
                bounded = len(node.args) > 3 or any(
                    keyword.arg == "lower_bound" for keyword in node.keywords
                )
                assert bounded, f"{path.name}: --{node.args[0].value} may be anything"
    assert found > 30


def test_help_shows_all_flags_of_the_program_and_no_others():
    code, out, err = run("benchmarks.device", "--help")
    assert code == 0 and not err
    for flag in ("--bundle:", "--output:", "--serial:", "--benchmark_flags:", "--threads:"):
        assert flag in out
    assert out.startswith("Measures bundles on Android devices") and "python -m benchmarks." in out
    assert "--verbosity" not in out and "--alsologtostderr" not in out
    code, out, _ = run("benchmarks.device", "--helpfull")
    assert code == 0 and "verbosity" in out and "--bundle:" in out


@pytest.mark.parametrize(
    "module, flag, words",
    [
        ("benchmarks.host", "--treads=1", "Did you mean: threads"),
        ("benchmarks.host", "--fps=nan", "--fps=nan is no finite number"),
        ("benchmarks.host", "--frames=10000000000", "--frames=10000000000"),
        ("benchmarks.host", "--frames=many", "--frames=many"),
        ("memvid_tf.detect", "--fps=30", "--bundle is missing"),
        ("export", "--iou_threshold=0", "--iou_threshold=0"),
        ("export", "--max_detections=0", "--max_detections=0"),
        ("export", "--tau=-1", "--tau=-1"),
    ],
)  # fmt: skip
def test_flags_that_are_wrong_are_one_line(module, flag, words):
    assert words in refused(module, flag)


def test_paths_are_checked_before_tensorflow(tmp_path):
    assert "--model_dir=none does not exist" in refused("export", "--model_dir=none", "--output_dir=out")
    (tmp_path / "params.yaml").write_text("task: {name: interleaved}")
    training = f"--model_dir={tmp_path}"
    assert "is a file" in refused("export", training, f"--output_dir={tmp_path}/params.yaml")
    none = "--input_path=/none"
    assert "/none does not exist" in refused("export", training, f"--output_dir={tmp_path}/b", none)
    assert "/none does not exist" in refused("memvid_tf.evaluate", training, none)
    assert "holds no checkpoint 'ckpt-9'" in refused(
        "memvid_tf.evaluate", training, "--checkpoint=ckpt-9"
    )
    assert "--latency=x does not exist" in refused("memvid_tf.evaluate", training, "--latency=x")
    assert "--config_file=x.yaml does not exist" in refused(
        "memvid_tf.train", "--model_dir=y", "--config_file=x.yaml"
    )


def test_outputs_that_cannot_be_written_are_named(tmp_path):
    paths.check_output("output", str(tmp_path / "new" / "folder" / "x.json"))
    assert os.listdir(tmp_path) == []  # nothing is made
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output=.* is a folder, wanted a file"):
        paths.check_output("output", str(tmp_path))
    with pytest.raises(UserError, match="--output=.*file/x cannot be written: .*file is no folder"):
        paths.check_output("output", str(tmp_path / "file" / "x"))
    with pytest.raises(UserError, match="--d=.*file is a file, wanted a folder"):
        paths.check_output("d", str(tmp_path / "file"), folder=True)
