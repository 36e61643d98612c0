"""What is measured: one list for this machine and for devices."""

import flagless
import pytest
import tiny_bundle
import tiny_patchwork

from benchmarks import benchmark_model
from benchmarks import tasks as work
from benchmarks.engines import PythonEngine
from benchmarks.runner import schedules
from memvid_tf.errors import UserError

device = flagless.program("benchmarks.device")


def test_every_graph_and_schedule_with_every_number_of_threads():
    bundles = [tiny_bundle.load("int8"), tiny_bundle.load("float32")]
    peer = bundles[0].graph_path("f0")
    tasks = work.all_tasks(bundles, [peer], "here", "runner", work.Wish([1, 2], tau=4, fps=30.0))
    assert len(tasks) == 2 * (2 * (5 + 4) + 1) == len({task.setting for task in tasks})
    found = {task.setting.name: task for task in tasks if task.setting.threads == 2}
    assert {"f0", "f1", "sync τ=4", "async τ=4", "whole model", "memory/step"} <= set(found)
    assert [found[name].cores for name in ("sync τ=4", "async τ=4")] == [2, 3]
    assert found["sync τ=4"].setting.fps == 30.0 and found["memory/step"].setting.fps == 0.0
    assert sorted(found["f0"].hashes) == ["f0.tflite", "f1.tflite", "memory.tflite", "post.tflite"]
    assert list(found["whole model"].hashes) == ["f0.tflite"]


def test_models_of_one_stem_have_names_of_their_own(tmp_path):
    paths = [tmp_path / name for name in ("a/net.tflite", "b/net.tflite", "b/net.lite", "x.tflite")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode())
    assert work.peer_names(paths) == ["a/net.tflite", "b/net.tflite", "net.lite", "x"]
    assert work.peer_names(paths[1:2]) == ["net"]
    tasks = work.all_tasks([], paths, "here", "runner", work.Wish([1, 2]))
    assert len({task.setting for task in tasks}) == 8
    names = {task.setting.flags for task in device.foreign_tasks(
        [], paths, "here", work.Wish([1]), paths[-1], "--use_gpu=true  --x='a b'"
    )}  # fmt: skip
    assert names == {"--use_gpu=true '--x=a b'"}


@pytest.mark.parametrize(
    "text, message", [("--x='a", "No closing quotation"), ("gpu", "'gpu' is no flag")]
)
def test_flags_that_are_none_are_refused(text, message):
    with pytest.raises(UserError, match=f"--benchmark_flags.*{message}"):
        benchmark_model.split_flags(text)


@pytest.mark.parametrize("kind", tiny_patchwork.KINDS)
def test_windows_are_schedules_like_others(kind):
    """The Python engine runs them all; the native runner's equality is tested with it."""
    _, bundle = tiny_patchwork.exported(kind)
    wish = work.Wish([1], frames=20)
    tasks = work.schedule_tasks(bundle, "net", "here", "python", 1, wish)
    assert [task.setting.name for task in tasks] == ["full", "scanning", "random"]
    results = {task.setting.name: task.run(PythonEngine()) for task in tasks}
    assert {name: set(r["extractors"]) for name, r in results.items()} == {
        "full": {"0"}, "scanning": {"1"}, "random": {"1"}
    }  # fmt: skip
    for result in results.values():
        assert len(result["latency_us"]) == len(result["prepare_us"]) == 20
        assert "effective_tau" not in result and result["mean_us"]["extract"] > 0
    count = bundle.manifest.windows.layout().windows.count
    assert max(results["scanning"]["memory_age_frames"]) < count


def test_schedules_that_cannot_run_are_left_out():
    bundle = tiny_bundle.load()
    assert schedules.names(bundle) == ["f0", "f1", "sync", "async"]


def test_a_device_that_fails_does_not_stop_the_others():
    done = []

    def measure(name, stop, number):
        if name == "bad":
            raise UserError("device bad: gone")
        done.append((name, number))

    assert device.side_by_side(["a", "bad", "b"], measure) == ["device bad: gone"]
    assert sorted(done) == [("a", 0), ("b", 2)]

    def broken(name, stop, number):
        if name == "bad":
            raise RuntimeError("a fault of ours")
        done.append(name)

    done.clear()
    with pytest.raises(RuntimeError, match="a fault of ours"):
        device.side_by_side(["bad", "a"], broken)
    assert done == ["a"], "the others were measured first"
