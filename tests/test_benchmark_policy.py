"""The comparison of learned and fixed policies: what it computes, claims and draws."""

import json
import xml.etree.ElementTree

import cv2
import flagless
import numpy as np
import pytest
import tiny_run

from benchmarks import measurements, plots, policy_clips
from benchmarks.plots import Series
from memvid_tf.data import records, sharding, synthetic
from memvid_tf.errors import UserError

policy = flagless.program("benchmarks.policy")
policy_page = flagless.program("benchmarks.policy_page")
GAMMAS = ["0.1", "0.3", "1", "1.5"]
SHARES = (0.4, 0.2, 0.1, 0.05)
FIXED = {"f0": (1.0, 0.9), "1": (0.5, 0.88), "4": (0.2, 0.84), "9": (0.1, 0.8), "39": (0.025, 0.6)}


def test_a_family_between_its_members():
    points = [(0.1, 0.8), (0.4, 0.9), (0.2, 0.84)]  # in any order
    assert policy.at_share(points, 0.1) == pytest.approx(0.8)
    # Half way between .1 and .4 on a logarithmic axis lies .2; between .2 and .4 the root of .08.
    assert policy.at_share(points, 0.08**0.5) == pytest.approx(0.87)
    assert policy.at_share(points, 0.05) is None and policy.at_share(points, 0.5) is None


def test_entries_and_coverage_by_hand():
    tracks = [np.array(ids) for ids in ([1, 2], [2], [1, 2], [2, 5], [5, 2], [])]
    assert policy_clips.entered(tracks).tolist() == [False, False, False, True, False, False]
    boxes = np.array([[0, 0, 4, 4], [0, 2, 4, 10], [5, 5, 6, 6]], float)
    # The first is covered by half, the second by a quarter, the third not at all.
    np.testing.assert_allclose(policy_clips.coverage(boxes), [0.5, 0.25, 0])
    assert policy_clips.coverage(boxes[:1]).tolist() == [0]
    assert policy_clips.coverage(np.zeros((0, 4))).shape == (0,)


def test_shares_by_hand():
    entries = [np.zeros(11, bool) for _ in range(3)]
    entries[1][4] = True
    clips = policy_clips.Clips({"objects": np.array([2.0, 3.0, 1.0])}, entries)
    # Clip 1 is hardest and has f0 on frames 4, 6 and 8; clip 2 is easiest, with f0 on frame 10.
    found = policy_clips.shares(clips, [[0, 5, 9], [0, 4, 6, 8], [0, 10]])
    assert found["objects, hard"] == pytest.approx(0.3)
    assert found["objects, easy"] == pytest.approx(0.1)
    # The entry counts for frames 4 to 7 of clip 1; 26 others are left.
    assert found["entry, at and after"] == pytest.approx(2 / 4)
    assert found["entry, elsewhere"] == pytest.approx(4 / 26)


def seed(gain, shares=SHARES, int8=0.0, hard=2.0):
    """What `policy.measured` returns for a policy that is `gain` better than the fixed ones."""
    adaptive = {}
    for number, (gamma, share) in enumerate(zip(GAMMAS, shares)):
        fixed = policy.at_share(FIXED.values(), share)
        adaptive[gamma] = {
            "share": share, "mAP": fixed + gain, "fixed": fixed, "random": fixed - 0.02,
            "int8_share": share, "int8_mAP": fixed + gain + int8,
            "shares": {
                f"{name}, {part}": share * factor
                for name, parts in policy_clips.COMPARED.items()
                for part, factor in zip(parts, (hard, 0.5))
            },
            "f0_frames": [[0, 3 + number], [0, 1, 2], [0]],
        }  # fmt: skip
    random = {f"random{int(100 * share)}": (share, ap - 0.02) for share, ap in FIXED.values()}
    int8_fixed = {"9": (0.1, 0.795)}
    return {"fixed": FIXED, "random": random, "int8_fixed": int8_fixed, "adaptive": adaptive}


def held(seeds):
    found = policy.claims(seeds, policy.over_seeds(seeds, GAMMAS))
    return [claim["holds"] for claim in found]


def test_claims_hold_and_do_not():
    assert held([seed(0.02), seed(0.03), seed(0.025)]) == [True] * 7
    # Better in the mean, but by less than the spread over seeds.
    assert held([seed(0.05), seed(-0.03), seed(0.0)]) == [False] + [True] * 6
    assert held([seed(0.05)])[0] is False  # one seed has no spread
    assert held([seed(-0.01), seed(-0.012)])[0] is False
    # One seed in which a larger γ runs f0 more often.
    assert held([seed(0.02), seed(0.02, (0.4, 0.1, 0.2, 0.05))])[1] is False
    assert held([seed(0.02, int8=-0.015), seed(0.02, int8=-0.008)])[2] is False
    assert held([seed(0.02, hard=0.6), seed(0.02, hard=0.3)])[3:] == [False] * 4


def result(info):
    seeds = [seed(0.02), seed(0.03)]
    table = policy.over_seeds(seeds, GAMMAS)
    curve = [[step, 0.1 * step] for step in range(0, 50, 10)]
    return {
        "bases": ["a", "b"], "gammas": GAMMAS, "steps": 10, "quick": True,
        "data": {
            "input_path": "x", "split": "test", "clips": 3,
            "motion_split": info.split("test").statistics["motion_split"],
        },
        "seeds": seeds, "table": table, "claims": policy.claims(seeds, table),
        "curves": {f"{part}/{name}": curve for name, part in policy_page.CURVES.items()},
        "curves_gamma": "0.3",
        "overhead": [{"subject": "tiny", "threads": 1, "policy_us": 12.0, "share of f1": 0.01}],
        "provenance": {"date": "today", "code_version": "1", "machine": {"processor": "some"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    config = synthetic.SyntheticConfig(
        train_clips=1, test_clips=3, train_clip_frames=2, test_clip_frames=8
    )
    folder = tmp_path_factory.mktemp("policy") / "set"
    return sharding.write_dataset(folder, synthetic.plan(config), workers=0)[0]


def test_the_page_and_its_pictures(info, tmp_path):
    content = json.loads(json.dumps(result(info)))  # as it is read again
    output = str(tmp_path / "policy")
    policy_page.draw(content, info, output)
    page = policy_page.markdown(content, "policy")
    assert "| 0.3 | 0.200 ± 0.000" in " ".join(page.split())
    assert "0.025 ± 0.007" in page and "does not hold" not in page
    for number in (6, 7, 8):
        assert f"policy_fig{number}.svg" in page
        xml.etree.ElementTree.parse(f"{output}_fig{number}.svg")
    picture = cv2.imread(f"{output}_fig9.jpg")[..., ::-1]
    # Rows are clips by how often f0 ran: 1, 2 and 3 of 8 frames; frames are 144 wide and 4 apart.
    rows = np.split(picture.astype(int), policy_page.STRIP_CLIPS)
    left = [row[20:-20, 4::148][:, :8] for row in rows]
    near = [(np.abs(pixels - policy_page.FRAME_RED).sum(-1) < 90).mean(0) > 0.9 for pixels in left]
    counts = [int(row.sum()) for row in near]
    assert counts[0] == 1 and counts[-1] == 3 and counts == sorted(counts)


def test_several_plots_in_one():
    series = {"a": [Series("n", [1, 2], [3, 4])], "b": [Series("", [1], [2])]}
    found = plots.columns_svg("t", "x", series)
    assert found.startswith("<?xml") and found == plots.columns_svg("t", "x", series)
    with pytest.raises(ValueError, match="'t' has no points"):
        plots.columns_svg("t", "x", {"a": [Series("n", [], [])]})


def test_overhead_by_hand(tmp_path):
    path = tmp_path / "host.json"
    found = measurements.Results(path)
    samples = {
        ("graph", "policy/serving_default"): [20.0, 30.0, 90.0],
        ("graph", "f1/serving_default"): [1.0],
        ("schedule", "f1"): [500.0, 700.0],
        ("schedule", "adaptive"): [500.0, 500.0, 2000.0],
    }
    for threads, left_out in ((1, ()), (2, ("policy/serving_default",))):
        for (kind, name), latency_us in samples.items():
            if name not in left_out:
                setting = measurements.Setting("host", "tiny int8", kind, name, threads, "runner")
                found.append(
                    measurements.Measurement(
                        setting, 0, "int8", None, {}, {}, {}, {"latency_us": latency_us}, "", ""
                    )
                )
    [row] = policy.overhead(str(path))  # nothing to say where π was not measured
    assert (row["subject"], row["threads"]) == ("tiny int8", 1)
    assert row["policy_us"] == pytest.approx(30.0)
    assert row["share of f1"] == pytest.approx(30 / 600)
    assert row["share of adaptive"] == pytest.approx(30 / 1000)
    assert "share of f0" not in row


def test_a_missing_results_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_page, "FLAGS", type("F", (), {"results": str(tmp_path / "no.json")}))
    with pytest.raises(UserError, match="no.json.*benchmarks.policy writes one"):
        policy_page.main(["x"])


@pytest.mark.slow
def test_from_detector_to_page_in_miniature(tmp_path):
    """Every step by its program, on the smallest detector, with two γ."""
    sizes = f"[{','.join(map(str, tiny_run.FRAME))}]"
    overrides = (
        *(f"task.{part}_data.image_size={sizes}" for part in ("train", "validation")),
        *(f"task.{part}_data.max_objects=2" for part in ("train", "validation")),
        "task.train_data.unroll_frames=6",
        "task.train_data.global_batch_size=2",
        "task.validation_data.unroll_frames=0",
        "task.windows=4",
        "task.ddqn.games_per_step=4",
        "task.ddqn.batch_size=8",
        "task.ddqn.updates_per_step=2",
        "trainer.steps_per_loop=1",
        "trainer.summary_interval=1",
        "trainer.checkpoint_interval=5",
    )
    policies = policy.Policies(
        tiny_run.qat_run(), str(tmp_path / "work"), tiny_run.data(), ("0.5", "5"), steps=5,
        overrides=overrides,
    )  # fmt: skip
    for step in policies.everything():
        assert not step.done()
        _, module, *arguments = step.command
        assert tiny_run.program(module, *arguments) == 0, step.title
        assert step.done(), step.title
    info = records.read_info(tiny_run.data())
    content = json.loads(json.dumps(policy.collected([policies], info)))
    assert list(content["table"]) == ["0.5", "5"] and content["curves_gamma"] == "5"
    curves = content["curves"]
    assert [step for step, _ in curves["train/q_f0"]] == [1, 2, 3, 4, 5]
    assert len(curves["validation/mAP"]) == 5
    for row in content["seeds"][0]["adaptive"].values():
        shares = [len(f0) / tiny_run.TEST_FRAMES for f0 in row["f0_frames"]]
        assert np.mean(shares) == pytest.approx(row["share"])
    content |= {"overhead": [], "provenance": result(info)["provenance"]}
    policy_page.draw(content, info, str(tmp_path / "policy"))
    assert "figure 9" in policy_page.markdown(content, "policy")
