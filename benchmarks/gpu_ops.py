r"""Every training and validation step, and what of it a GPU can run: shown without a GPU.

  python -m benchmarks.gpu_ops --output=benchmarks/results/gpu_ops

Each paper-scale configuration, as the command in its header trains it, is made small: frames of
32×64 pixels, a backbone of three blocks. Losses, cells, heads, schedules and optimizers are its
own. Its training step and its validation step are traced with determinism on, or run where their
loops are Python's, and everything they are made of is looked up in TensorFlow's registry of kernels
(`benchmarks.gpu_kernels`). Some more rows are of what the configurations leave out: other cells and
precisions.

Ends with exit code 1 if an operation has no GPU kernel, or refuses determinism there.
"""

import dataclasses
import os
import pathlib
import re
import sys
import tempfile

import yaml
from absl import flags, logging

from benchmarks import pages
from memvid_tf import errors, provenance

FLAGS = flags.FLAGS
CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
PAPER_SCALE = re.compile(r"(?!.*_(tiny|davis)).*\.yaml")
SIZE, BATCH, BACKBONE = (32, 64), 2, "three_blocks"
INT8 = {"task": {"model": {"quantization": "int8"}}}
FLOAT = {"task": {"model": {"quantization": "none"}}}
BFLOAT16 = {"runtime": {"mixed_precision_dtype": "bfloat16"}}
# Name, configuration and what is changed, where no configuration has it.
OTHERS = (
    ("interleaved, bfloat16", "interleaved", BFLOAT16),
    ("detector, bfloat16", "detector", BFLOAT16),
    ("segmenter, bfloat16", "segmenter", BFLOAT16),
    ("segmenter, int8", "segmenter", INT8),
    ("detector_patchwork, float", "detector_patchwork", FLOAT),
    ("segmenter_patchwork, float", "segmenter_patchwork", FLOAT),
    ("interleaved, the paper's cell", "interleaved", {"task": {"model": {"cell": "paper"}}}),
    *(
        (f"interleaved_qat, {cell}", "interleaved_qat", {"task": {"model": {"cell": cell}}})
        for cell in ("conv_lstm", "conv_gru", "bottleneck_conv_lstm")
    ),
    (
        "interleaved_qat, flow_guided",
        "interleaved_qat",
        {"task": {"model": {"cell": "flow_guided"}, "flow_weight": 0.1}},
    ),
)


@dataclasses.dataclass
class Step:
    """One row of the table.

    Attributes:
      training: name of the configuration, and what was changed.
      kind: "training" or "validation".
      operations: how many there are, of different names or data types.
      without_kernel, refusing: those without a GPU kernel, and those that refuse determinism there.
      host: those of strings, which stay on the CPU.
      jit_compile: "yes", or "no" and why.
    """

    training: str
    kind: str
    operations: int
    without_kernel: list[str]
    refusing: list[str]
    host: list[str]
    jit_compile: str


def define_flags():
    flags.DEFINE_string(
        "output",
        "",
        "Results, as PATH.json and PATH.md; by default they are only printed. "
        "Example: --output=benchmarks/results/gpu_ops",
    )
    flags.DEFINE_string(
        "only", "", "Trainings whose name holds this. Example: --only=segmenter"
    )


def trainings() -> list[tuple[str, str, dict]]:
    """(name, configuration, changes) of every row's training."""
    stems = sorted(path.stem for path in CONFIGS.glob("*.yaml") if PAPER_SCALE.match(path.name))
    return [*((stem, stem, {}) for stem in stems), *OTHERS]


def _command(stem: str):
    from memvid_tf.models.zoo import headers

    return headers.training_command(CONFIGS / f"{stem}.yaml")


def _small(task, data: str) -> dict:
    """What is laid over a configuration to make it small."""
    common = {"input_path": data, "image_size": SIZE, "max_objects": 4, "global_batch_size": BATCH}
    train, shown = task.train_data, task.validation_data
    small = {
        "init_checkpoint": "",
        "train_data": {
            **common,
            "unroll_frames": min(train.unroll_frames, 3),
            "still_paths": [],
            "still_share": 0.0,
        },
        "validation_data": {
            **common,
            "split": "test",
            "unroll_frames": min(shown.unroll_frames or 3, 3),
        },
        "labels": [],
    }
    if hasattr(task, "ddqn"):
        small["ddqn"] = {"replay_capacity": 40, "batch_size": 8, "updates_per_step": 1}
    if hasattr(task, "windows"):
        small["windows"] = BATCH if isinstance(task.windows, int) else {"slices": 2, "adjacent": 1}
    if getattr(task, "base_model_dir", ""):
        return small
    # Fewer channels and maps of each network; the fields that it has.
    sizes = {
        "num_classes": 4,
        "image_size": SIZE,
        "backbone": BACKBONE,
        "min_depth": 8,
        "depth_multiplier": 0.5,
        "depth_multiplier_f0": 0.5,
        "depth_multiplier_f1": 0.25,
        "state_channels": 8,
        "groups": 2,
        "maps": 2,
        "head_depth": 16,
        "last_channels": 32,
        "extra_depths": [16],
    }
    return {**small, "model": {k: v for k, v in sizes.items() if hasattr(task.model, k)}}


def configured(stem: str, changes: dict, data: str, folder: str):
    """The small configuration of a training, complete.

    Args:
      stem: of the configuration file.
      changes: laid over it.
      data: folder of the data set.
      folder: for the configuration of what it stands on.
    """
    from memvid_tf.tasks import configuration, training

    command = _command(stem)
    experiment = command.one("experiment", "interleaved")
    files = [str(CONFIGS.parent / name) for name in command.all("config_file")]
    task = configuration.load(experiment, files, command.one("params_override")).task
    small = _small(task, data)
    base = getattr(task, "base_model_dir", "")
    if base:
        (stem_of_base,) = [
            path.stem
            for path in CONFIGS.glob("*.yaml")
            if _command(path.stem).one("model_dir") == base
        ]
        small["base_model_dir"] = os.path.join(folder, stem_of_base)
        configuration.save(configured(stem_of_base, {}, data, folder), small["base_model_dir"])
    for number, content in enumerate(({"task": small}, changes)):
        path = os.path.join(folder, f"{stem}_{number}.yaml")
        with open(path, "w", encoding="utf-8") as file:
            yaml.dump(configuration._plain(content), file)
        files.append(path)
    return training.completed(configuration.load(experiment, files))


def _batch(task, params):
    return next(iter(task.build_inputs(params)))


def _looked_up(name: str, kind: str, found, jit_compile: str) -> Step:
    """The row of a step that is made of these operations."""
    from benchmarks import gpu_kernels

    host = {op for op in found if gpu_kernels.on_host(op)}

    def names(of):
        return sorted(gpu_kernels.named(op) for op in of)

    return Step(
        training=name,
        kind=kind,
        operations=len(found),
        without_kernel=names(op for op in found - host if not gpu_kernels.on_gpu(op)),
        refusing=names(op for op in found if op.refuses),
        host=names(host),
        jit_compile=jit_compile,
    )


def _traced(name: str, kind: str, function, batch) -> Step:
    """The row of a step that is a graph."""
    import tensorflow as tf

    from benchmarks import gpu_kernels

    # Whether it is to be compiled changes nothing in the graph.
    step = tf.function(function, autograph=False, jit_compile=True)
    found = gpu_kernels.of_graph(step.get_concrete_function(batch))
    if any(op.name == "EagerPyFunc" for op in found):
        return _looked_up(name, kind, found, "no: calls Python where the loss is not finite")
    try:
        step.experimental_get_compiler_ir(batch)(stage="hlo")
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).partition("HLO text: ")[2].strip("'").partition(". ")[0]
        return _looked_up(name, kind, found, f"no: {reason}")
    return _looked_up(name, kind, found, "yes")


def _run(name: str, kind: str, function, batch) -> Step:
    """The row of a step whose loops are Python's."""
    from benchmarks import gpu_kernels

    found = gpu_kernels.of_steps(lambda: function(batch))
    return _looked_up(name, kind, found, "no: its loops are Python's")


def steps(name: str, params) -> list[Step]:
    """The training step and the validation step of a training.

    Args:
      name: of the training.
      params: its complete configuration.
    """
    from official.core import task_factory, train_utils

    from memvid_tf.tasks import devices

    with devices.precision(params.runtime, params.task):
        task = task_factory.get_task(params.task)
        model = task.build_model()
        task.checkpoint_items(model)
        for variable in model.variables:
            # As if they had been observed: without a width a range makes no number.
            if variable.name.split(":")[0].endswith("_max"):
                variable.assign(6.0)
        optimizer = train_utils.create_optimizer(task, params)
        optimizer._create_all_weights(model.trainable_variables)
        metrics, trainer = task.build_metrics(), params.trainer
        return [
            (_traced if trainer.train_tf_function else _run)(
                name,
                "training",
                lambda batch: task.train_step(batch, model, optimizer, metrics),
                _batch(task, params.task.train_data),
            ),
            (_traced if trainer.eval_tf_function else _run)(
                name,
                "validation",
                lambda batch: task.validation_step(batch, model),
                _batch(task, params.task.validation_data),
            ),
        ]


def write_data(folder: str) -> str:
    """Writes the data set on which the steps run; returns its folder."""
    from memvid_tf.data import sharding, synthetic

    config = synthetic.SyntheticConfig(
        image_size=32,
        num_classes=4,
        train_clips=4,
        test_clips=2,
        train_clip_frames=4,
        test_clip_frames=3,
        min_side=0.3,
        max_side=0.6,
        max_objects=2,
    )
    plan = synthetic.plan(config)
    return str(sharding.write_dataset(os.path.join(folder, "data"), plan, workers=0)[0].folder)


def measure(only: str = "") -> dict:
    """Runs every step of the trainings whose name holds `only`."""
    import tensorflow as tf
    import tf_keras

    from benchmarks import gpu_kernels
    from memvid_tf.models.mobilenet_v2 import BACKBONES, Stage

    BACKBONES[BACKBONE] = (Stage(2, 16, 1, 2), Stage(2, 16, 1, 1), Stage(2, 24, 1, 1))
    tf_keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(folder)
        for name, stem, changes in trainings():
            if only in name:
                found += steps(name, configured(stem, changes, data, folder))
                print(f"{name}: done", file=sys.stderr)
    return {
        "steps": [dataclasses.asdict(step) for step in found],
        "unknown_texts": gpu_kernels.unknown_texts(),
        "refusals": [dataclasses.asdict(refusal) for refusal in gpu_kernels.REFUSALS],
        "build": {k: str(v) for k, v in tf.sysconfig.get_build_info().items()},
        "provenance": provenance.describe(),
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def markdown(result: dict) -> str:
    """The page of what `measure` returned."""
    import tabulate

    source, build = result["provenance"], result["build"]
    rows = [
        (
            step["training"],
            step["kind"],
            step["operations"],
            _listed(step["without_kernel"]),
            _listed(step["refusing"]),
            step["jit_compile"],
        )
        for step in result["steps"]
    ]
    headers = ("training", "step", "operations", "without a GPU kernel")
    headers += ("refusing determinism", "`jit_compile`")
    host = sorted({name for step in result["steps"] for name in step["host"]})
    reasons = [(f"`{r['text']}`", ", ".join(r["ops"]) or r["why"]) for r in result["refusals"]]
    return "\n".join(
        [
            "# What of each step a GPU can run\n",
            f"Written by `python -m benchmarks.gpu_ops`, version {source['code_version']}, "
            f"{source['date']}, TensorFlow {source['packages']['tensorflow']} built for CUDA "
            f"{build.get('cuda_version')} and cuDNN {build.get('cudnn_version')}.\n",
            "**Not run on a GPU.** Each step was traced with determinism on, or ran on a CPU where "
            "its loops are Python's. Every operation, of loops, branches and gradients too, was "
            "looked up in TensorFlow's registry with its data types. What Grappler makes of a "
            "graph on a GPU, and what several replicas exchange, is not in it; nor is the input "
            "pipeline, which is the host's.\n",
            tabulate.tabulate(rows, headers, "pipe", disable_numparse=True) + "\n",
            f"On the host on any machine, as they are strings: {_listed(host)}.\n",
            "`jit_compile` says whether XLA translates the step; `runtime.enable_xla` is refused, "
            "as it is about training steps.\n",
            "## What refuses determinism\n",
            "By the texts of the errors in `libtensorflow_cc`; texts that are not explained here: "
            f"{_listed(result['unknown_texts'])}.\n",
            tabulate.tabulate(reasons, ("text", "operations, or why none"), "pipe") + "\n",
        ]
    )


def faults(result: dict) -> list[str]:
    """What the table must not hold, a line each."""
    found = [f"an unknown refusal of determinism: {text}" for text in result["unknown_texts"]]
    for step in result["steps"]:
        for key, what in (
            ("without_kernel", "has no GPU kernel"),
            ("refusing", "refuses determinism on a GPU"),
        ):
            found += [f"{step['training']}, {step['kind']}: {op} {what}" for op in step[key]]
    return found


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    logging.set_verbosity(logging.WARNING)
    result = measure(FLAGS.only)
    pages.publish(FLAGS.output, result, markdown(result))
    for fault in faults(result):
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults(result) else 0)


if __name__ == "__main__":
    define_flags()
    errors.run(main)
