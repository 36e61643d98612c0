"""The evidence of LFS tables 1 and 2: every step fits the programs, and claims read what they say."""

import flagless
import pytest
from official.core import task_factory

import memvid_tf  # noqa: F401  (before TensorFlow)
from benchmarks import claims, pipeline
from memvid_tf.models import zoo
from memvid_tf.models.zoo import costs
from memvid_tf.tasks import configuration, training  # noqa: F401  (registers the experiments)

baselines = flagless.program("benchmarks.baselines")
interleaved_papers = flagless.program("benchmarks.interleaved_papers")


@pytest.fixture(scope="module")
def run():
    return pipeline.Run("work", "set", baselines.phases(baselines.STEPS), (), seed=2)


def test_every_training_is_one_that_the_program_takes(run):
    widths, known = {}, set()
    for phase, step in zip(run.phases, run.trainings(), strict=True):
        params = configuration.load(
            step.flags["experiment"],
            [f"{pipeline.ROOT}/{path}" for path in step.flags["config_file"]],
            step.flags["params_override"],
        )
        task, trainer = params.task, params.trainer
        assert trainer.train_steps == phase.steps and task.seed == 2
        assert trainer.optimizer_config.learning_rate.cosine.decay_steps == phase.steps
        start = task.init_checkpoint
        assert bool(start) == bool(phase.follows)
        assert not start or start.rpartition("/")[2] in known
        data = task.train_data
        # The data of the run, in the size of one frame for all.
        assert data.input_path.endswith("/set") and task.validation_data.input_path.endswith("/set")
        assert tuple(data.image_size) == tuple(task.model.image_size) == (96, 96)
        seen = data.global_batch_size * data.unroll_frames
        if step.flags["experiment"] == "detector":
            assert seen == baselines.FRAMES
            widths[phase.name] = task.model.depth_multiplier
        else:
            # f1 gets one frame of each clip.
            assert seen - data.global_batch_size == baselines.FRAMES and task.f0_probability == 1
            widths[phase.name] = task.model.depth_multiplier_f0
        known.add(phase.name)
    assert list(widths.values())[:4] == [0.75] * 4
    for names in (baselines.SINGLE, baselines.LSTM):
        alphas = [widths[name] for name in names]
        assert alphas == sorted(set(alphas), reverse=True) and alphas[0] == 0.75
    assert set(known) >= set(baselines.LONG.values())
    # What those that are trained long see is what f0 of the interleaved detector sees, in both of its phases.
    phases = pipeline.tiny_phases(*interleaved_papers.STEPS.values())
    loaded = [
        configuration.load("interleaved", [f"{pipeline.ROOT}/configs/{c}.yaml" for c in p.configs], "")
        for p in phases[:2]
    ]
    seen = sum(
        phase.steps
        * params.task.train_data.global_batch_size
        * params.task.train_data.unroll_frames
        * params.task.f0_probability
        for phase, params in zip(phases, loaded)
    )
    assert baselines.STEPS["long"] * baselines.FRAMES == pytest.approx(seen)


def test_the_bottleneck_lstm_has_one_twin():
    names = ("interleaved_bottleneck_conv_lstm", baselines.BOTTLENECK)
    models = [costs.task(entry, entry.tiny).model for entry in map(zoo.find, names)]
    assert models[0] == models[1]


@pytest.mark.parametrize("name", ["ssdlite_0.35", "ssdlite_lstm_0.35"])
def test_twins_can_be_built(run, name):
    step = run.training(name)
    files = [f"{pipeline.ROOT}/{path}" for path in step.flags["config_file"]]
    experiment, overrides = step.flags["experiment"], step.flags["params_override"]
    task = configuration.load(experiment, files, overrides).task
    assert task_factory.get_task(task).build_model().trainable_variables


def test_every_claim_is_about_something_that_is_scored_and_counted():
    names = (*baselines.WITH_MEMORY, *baselines.SINGLE, *baselines.LONG.values())
    keys = [*names, *(f"interleaved:{mode}" for mode in baselines.INTERLEAVED), baselines.BUNDLE]
    counted = baselines.costs_of()
    assert set(counted) == set(keys)
    for name in baselines.FRONTIER.values():
        assert all(counted[a] > counted[b] for a, b in zip(name, name[1:]))
    # Later keys score higher, so that a difference has a sign.
    scores = {key: number / 100 for number, key in enumerate(keys)}
    rows = claims.judged(baselines.CLAIMS, [scores, scores])
    by_claim = {row["claim"]: row for row in rows}
    assert set(baselines.PAPER) <= scores.keys()
    bottleneck = by_claim["table 1: the grouped cell beats the Bottleneck LSTM"]
    assert not bottleneck["holds"] and bottleneck["mean"] == pytest.approx(-0.03)
    gain = by_claim["table 2: a memory beats single frames at each of four widths (smallest gain)"]
    assert not gain["holds"] and gain["mean"] == pytest.approx(-0.04)
    result = {
        "seeds": [2],
        "steps": baselines.STEPS,
        "test_clips": 60,
        "scores": {key: claims.spread([value]) for key, value in scores.items()},
        "claims": rows,
        "costs": counted,
        "provenance": {"machine": {"processor": "none"}, "date": "today"},
    }
    page = baselines.markdown(result, "results/some")
    assert "(some_cost.svg)" in page and "| ssdlite_0.35 " in page and "does not hold" in page
    drawn = baselines.picture(result)
    assert all(name in drawn for name in baselines.FRONTIER)
