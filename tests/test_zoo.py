"""The zoo: every entry is what its configuration says, and every ready bundle keeps its word."""

import os
import re
import subprocess
import sys

import flagless
import numpy as np
import pytest
import tensorflow as tf

from memvid_tf.errors import UserError
from memvid_tf.evaluation.counting import count
from memvid_tf.models import zoo
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.zoo import costs, headers
from memvid_tf.tasks import subjects

card = flagless.program("benchmarks.card")
built = flagless.program("benchmarks.zoo")
models = flagless.program("benchmarks.models")
pictures = flagless.program("benchmarks.pictures")
RESULTS = zoo.ROOT / "benchmarks" / "results"
READY = [entry for entry in zoo.ENTRIES if entry.bundle]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "memvid_tf.models.zoo", *arguments],
        capture_output=True,
        text=True,
        cwd=zoo.ROOT,
        check=False,
    )


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_both_configurations_train_what_the_entry_is(entry):
    experiments = {
        headers.training_command(zoo.config_path(name)).one("experiment", "interleaved")
        for name in (entry.config, entry.tiny)
    }
    assert len(experiments) == 1
    small, large = (costs.task(entry, name) for name in (entry.tiny, entry.config))
    assert type(small.model) is type(large.model)


def counted(name):
    return [row.multiply_adds / 1e6 for row in costs.costs(zoo.find(name))]


# What the paper prints of every network stands beside what is counted in results/costs.md.
def test_a_single_frame_network_costs_what_table_2_says():
    (value,) = counted("ssdlite_0.35")
    assert "204 M multiply-adds" in zoo.find("ssdlite_0.35").reported
    assert value == pytest.approx(204, rel=0.005)


def test_the_interleaved_detector_costs_what_table_2_says_at_tau_9():
    f0, f1, policy = counted("interleaved_policy")
    assert (f0 + 9 * f1) / 10 == pytest.approx(190, rel=0.005)
    assert policy == pytest.approx(1.76, rel=0.005)  # LFS 4.3


def test_the_detector_with_a_bottleneck_lstm_costs_what_table_2_says():
    f0, _ = counted("ssdlite_lstm_1.0")
    assert "630 M multiply-adds" in zoo.find("ssdlite_lstm_1.0").reported
    assert f0 == pytest.approx(630, rel=0.005)


def test_a_frame_that_flow_carries_features_to_costs_encoder_flow_and_head():
    entry, (f0, f1) = zoo.find("flow_guided"), counted("flow_guided")
    model = InterleavedDetector(costs.task(entry, entry.config).model)
    encoder = count(lambda x: model.extract(x, "f1"), tf.TensorSpec([1, 160, 160, 3]))
    head = count(model.detect, tf.TensorSpec([1, 10, 10, 640]))
    # Encoding, three separable convolutions on [e, k], and what makes shares of the flow.
    flow = 448 * 64 + (9 + 64) * 128 + (9 + 64) * 64 + (9 + 2) * 64 + 2 * 8 + 2 * 8 * 25
    assert f1 * 1e6 == encoder.multiply_adds + head.multiply_adds + 100 * flow
    assert f1 < 0.2 * f0


def test_each_configuration_has_settings_of_its_own():
    entry = zoo.find("interleaved_conv_gru")
    for name, channels in ((entry.config, 640), (entry.tiny, 128)):
        model = costs.task(entry, name).model
        assert (model.cell, model.state_channels) == ("conv_gru", channels)


def test_a_window_of_a_quarter_costs_little_more_than_that():
    whole, window, attention = counted("segmenter_patchwork")
    assert 0.25 < window / whole < 0.3 and attention < 0.01 * whole


def test_list_and_show():
    listed = run("list")
    assert listed.returncode == 0
    for entry in zoo.ENTRIES:
        assert f"| {entry.name} " in listed.stdout
    shown = run("--nocount", "show", "interleaved_policy")
    assert shown.returncode == 0
    assert "task.base_model_dir=runs/interleaved_qat" in shown.stdout
    assert "configs/interleaved_tiny_policy.yaml" in shown.stdout
    shown = run("--nocount", "show", "interleaved_conv_lstm")
    assert shown.stdout.count("task.model.cell=conv_lstm,task.model.state_channels=") == 2


def test_a_program_whose_output_nobody_reads_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "memvid_tf.models.zoo", "list"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=zoo.ROOT, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_another_broken_pipe_is_no_end_of_the_output():
    program = """
from memvid_tf import errors
def main(argv):
    raise BrokenPipeError("of a decoder")
errors.run(main)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=zoo.ROOT, check=False)
    assert ended.returncode == 1 and "BrokenPipeError: of a decoder" in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("show",), ("show", "a", "b"), ("draw", "interleaved")])
def test_what_is_no_command_is_refused(arguments):
    refused = run(*arguments)
    assert refused.returncode == 2 and "is not 'list' or 'show NAME'" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_is_not_in_the_zoo_is_refused():
    with pytest.raises(UserError, match="'interleved' is not in the zoo; it has interleaved, "):
        zoo.find("interleved")


def test_there_is_a_ready_bundle():
    assert READY


@pytest.mark.parametrize("entry", READY, ids=lambda entry: entry.name)
def test_a_ready_bundle_scores_what_its_card_says(entry):
    subject = subjects.from_bundle(str(entry.bundle))  # compares every file with its sha256
    known = entry.card
    found = card.score(subject, known["preset"], known["clips"], list(known["modes"]))
    # Kernels of other processors may round a few outputs otherwise, and with them a decision.
    for mode, wanted in known["modes"].items():
        assert found[mode] == pytest.approx(wanted, abs=0.005, rel=0), mode


@pytest.mark.parametrize("entry", READY, ids=lambda entry: entry.name)
def test_a_page_says_how_a_ready_bundle_is_run(entry):
    shown = run("--nocount", "show", entry.name)
    path = f"memvid_tf/models/zoo/bundles/{entry.name}"
    assert f"--bundle={path}" in shown.stdout
    for mode, result in entry.card["modes"].items():
        score = next(iter(result.values()))
        assert re.search(rf"\| {mode} +\| +{score:.3f} ", shown.stdout)


def test_an_entry_is_exported_in_both_precisions_and_its_page_says_so(tmp_path):
    # The smallest: what an untrained network of paper scale takes is most of this test's time.
    entry = zoo.find("ssdlite_0.35")
    found = built.measured(entry, str(tmp_path))
    sizes = [found["bytes"][precision]["network"] for precision in built.PRECISIONS]
    assert 2.5 < sizes[1] / sizes[0] < 4  # a byte a weight for four, and the graph itself
    found["latency_ms"] = built.latencies(str(tmp_path), found["bytes"]["int8"], "python")
    assert found["latency_ms"].keys() == {"network", "post"} and found["latency_ms"]["network"] > 0
    page = built.markdown(
        {
            "entries": {entry.name: found},
            "engine": "python",
            "load_average": 0.0,
            "provenance": {"machine": {"processor": "none", "cores": 1}, "date": "today"},
        }
    )
    assert "| ssdlite_0.35" in page and "a frame 204.4" in page and entry.reported in page
    assert f"network {found['latency_ms']['network']:.2f}, post " in page


def test_the_picture_has_a_row_of_frames_for_each_ready_bundle():
    rows = [pictures.seen(entry, 0) for entry in READY]
    for row in rows:
        assert len(row) == pictures.COLUMNS
        # Frames follow one another.
        assert all((a != b).any() for a, b in zip(row, row[1:]))
        assert all(frame.dtype == np.uint8 and frame.shape == row[0].shape for frame in row)
    sheet = pictures.sheet(rows)
    height = sum(row[0].shape[0] + pictures.GAP_PIXELS for row in rows)
    widest = max(row[0].shape[1] for row in rows)
    assert sheet.shape == (height, pictures.COLUMNS * (widest + pictures.GAP_PIXELS), 3)


def test_every_network_has_a_page_with_what_was_measured():
    results = models.Results(str(RESULTS))
    assert set(models.SCORES) == {entry.name for entry in zoo.ENTRIES}
    index = (RESULTS / "models.md").read_text(encoding="utf-8")
    assert models.index(results) == index
    for entry in zoo.ENTRIES:
        page = (RESULTS / "models" / f"{entry.name}.md").read_text(encoding="utf-8")
        assert models.page(entry, results) == page
        assert f"[{entry.name}](models/{entry.name}.md)" in index
        # What a reader would run is on it, and no accuracy is blank without a reason.
        assert "python -m memvid_tf.train" in page and "not measured: no" not in page
        assert "not measured: python" not in page
    assert models.Results(str(RESULTS)).value(
        models.Score("mAP", "davis_float", ("modes", "9", "mean_ap"))
    ) == "0.495"


def test_a_page_says_what_was_not_measured(tmp_path):
    results = models.Results(str(tmp_path))
    page = models.page(zoo.find("segmenter"), results)
    assert "not measured: no windows_segmenter.json" in page
    assert "not measured: no davis_segmenter.json" in page
    assert "not measured: python -m benchmarks.zoo" in page
    assert "not trained on it" in models.page(zoo.find("detector"), results)
