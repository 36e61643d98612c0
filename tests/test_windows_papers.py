"""Patchwork's evidence: every step of the command fits the programs, and claims read what they say."""

import flagless
import pytest
from official.core import task_factory

import memvid_tf  # noqa: F401  (before TensorFlow)
from benchmarks import claims, pipeline
from memvid_tf.tasks import configuration, training  # noqa: F401  (registers the experiments)

windows_papers = flagless.program("benchmarks.windows_papers")
KINDS = pytest.mark.parametrize("kind", windows_papers.KINDS)


def run(kind, folder="work"):
    counts = windows_papers.STEPS[kind]
    return pipeline.Run(folder, "data", windows_papers.phases(kind, counts), (), seed=2)


@KINDS
def test_every_training_is_one_that_the_program_takes(kind):
    made, known = run(kind), set()
    for phase, step in zip(made.phases, made.trainings(), strict=True):
        flags = step.flags
        params = configuration.load(
            flags["experiment"],
            [f"{pipeline.ROOT}/{path}" for path in flags["config_file"]],
            flags["params_override"],
        )
        assert params.trainer.train_steps == phase.steps and params.task.seed == 2
        start = {
            "task.init_checkpoint": params.task.init_checkpoint,
            "task.base_model_dir": getattr(params.task, "base_model_dir", None),
        }[phase.start_key]
        # It starts from what was trained before, or from nothing.
        assert bool(start) == (phase.follows != "" and phase.name != "frames")
        assert not start or start.rpartition("/")[2] in known
        if phase.decays:
            rate = params.trainer.optimizer_config.learning_rate
            assert rate.cosine.decay_steps == phase.steps
        if "windows_" in phase.name or "attention_" in phase.name:
            slices, adjacent = phase.name.split("_")[1:3]
            windows = params.task.windows
            assert (windows.slices, windows.adjacent) == (int(slices), int(adjacent))
            assert (windows.context == "none") == phase.name.endswith("nocell")
        if phase.name in windows_papers.RESIZED:
            side = windows_papers.RESIZED[phase.name]
            task = params.task
            for section in (task.model, task.train_data, task.validation_data):
                assert tuple(section.image_size) == (side, side)
            # Its maps fit so small a frame.
            assert task_factory.get_task(task).build_model().trainable_variables
        known.add(phase.name)
    assert set(windows_papers.MODES) <= known


@KINDS
def test_every_claim_is_about_something_that_is_scored(kind):
    titles = [step.title for step in windows_papers.steps(run(kind))]
    assert len(set(titles)) == len(titles)
    keys = [f"{name}:{mode}" for name, modes in windows_papers.MODES.items() for mode in modes]
    for suffix in ("float", "int8"):
        keys += [f"windows_4_2_{suffix}:{mode}" for mode in windows_papers.INT8_MODES]
    # Later keys score higher, so that a difference has a sign.
    scores = {key: number / 100 for number, key in enumerate(keys)}
    rows = claims.judged(windows_papers.CLAIMS, [scores, scores])
    by_claim = {row["claim"]: row for row in rows}
    assert set(windows_papers.PAPER[kind]) <= scores.keys()
    chance = by_claim["1/4: attention beats chance"]
    assert chance["holds"] and chance["mean"] == pytest.approx(0.02) and chance["spread"] == 0
    lost = by_claim["1/4: attention loses at most .02 to the full single frame"]
    assert lost["holds"] and lost["mean"] == pytest.approx(-0.06)
    assert not by_claim["with the cell scanning is better than without"]["holds"]
    result = {
        "kind": kind,
        "seeds": [2],
        "steps": windows_papers.STEPS[kind],
        "test_clips": 60,
        "scores": {
            metric: {key: claims.spread([value]) for key, value in scores.items()}
            for metric in windows_papers.METRICS[kind]
        },
        "claims": {metric: rows for metric in windows_papers.METRICS[kind]},
        "costs": {key: number * 1e6 for number, key in enumerate(keys, 1)},
        "provenance": {"machine": {"processor": "none"}, "date": "today"},
    }
    page = windows_papers.markdown(result, "results/some")
    assert "(some_cost.svg)" in page
    drawn = windows_papers.picture(result)
    assert drawn.lstrip().startswith("<?xml") and all(
        name in drawn for name in windows_papers.FRONTIER
    )
    assert "does not hold" in page and "| windows_4_2" in page and "± 0.000" in page
