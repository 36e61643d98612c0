"""Configurations: keys that mean nothing and values out of range are refused when they are read."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re
import time

import pytest
import yaml
from official.core import config_definitions, exp_factory
from official.modeling import optimization

import memvid_tf
from memvid_tf.data import clips
from memvid_tf.errors import UserError
from memvid_tf.tasks import config_rules, configuration, devices

EXPERIMENT = "test_config_rules"
# Names of something else in the sources; the field of that name is read by nobody.
HOMONYMS = {"cache", "sharding", "deterministic"}
USED_OF_THE_LIBRARY = ("base_trainer", "train_lib", "train_utils", "base_task", "actions")


@dataclasses.dataclass
class Task(config_definitions.TaskConfig):
    name: str = EXPERIMENT
    train_data: clips.ClipConfig = dataclasses.field(default_factory=clips.ClipConfig)
    groups: int = 4
    image_size: tuple[int, ...] = (96, 96)
    labels: tuple[str, ...] = ()


@exp_factory.register_config_factory(EXPERIMENT)
def experiment():
    optimizer = optimization.OptimizationConfig(
        {
            "optimizer": {"type": "adam"},
            "learning_rate": {"type": "cosine", "cosine": {"decay_steps": 9}},
        }
    )
    return config_definitions.ExperimentConfig(
        task=Task(),
        runtime=devices.RuntimeConfig(),
        trainer=config_definitions.TrainerConfig(train_steps=9, optimizer_config=optimizer),
    )


def refused(pairs="", file=None):
    with pytest.raises(UserError) as caught:
        configuration.load(EXPERIMENT, [str(file)] if file else [], pairs)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


@functools.cache
def attributes(*folders):
    """Names that are read of anything in the sources, as `x.name`."""
    found = set()
    for folder in folders:
        for path in pathlib.Path(folder).rglob("*.py"):
            found |= {
                node.attr
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            }
    return found


PACKAGE = pathlib.Path(memvid_tf.__file__).parent
SOURCES = (PACKAGE, PACKAGE.parent / "export", PACKAGE.parent / "benchmarks")


def test_every_key_of_the_library_is_read_or_refused():
    core = pathlib.Path(importlib.util.find_spec("official.core").submodule_search_locations[0])
    library = set()
    for name in USED_OF_THE_LIBRARY:
        tree = ast.parse((core / f"{name}.py").read_text(encoding="utf-8"))
        library |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read = (attributes(*SOURCES) - HOMONYMS) | (library - config_rules.NAMED_ELSEWHERE)
    for kind, unread in config_rules.UNREAD.items():
        declared = {field.name for field in dataclasses.fields(kind)}
        assert set(unread) <= declared
        assert declared - set(unread) <= read | {"optimizer_config"}, "neither read nor refused"
        assert not set(unread) & read, "refused, though it is read"


def test_every_key_of_ours_is_read():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith("Config") for base in node.bases
            ):
                fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
                assert fields <= attributes(*SOURCES), f"{path.name}: {node.name}"


SECTIONS = {
    config_definitions.DataConfig: "task.train_data",
    config_definitions.RuntimeConfig: "runtime",
    config_definitions.TrainerConfig: "trainer",
    config_definitions.TaskConfig: "task",
}
OTHER = {bool: lambda v: str(not v).lower(), int: lambda v: v + 1, str: lambda v: f"{v}x"}


def test_keys_that_nothing_reads_are_refused_where_they_say_something():
    params = exp_factory.get_exp_config(EXPERIMENT)
    for kind, keys in config_rules.UNREAD.items():
        section = functools.reduce(getattr, SECTIONS[kind].split("."), params)
        for key in keys:
            default = getattr(section, key)
            hint = str(kind.__annotations__[key])
            new = "true" if "bool" in hint else 7 if "int" in hint else "x"
            if default is not None:
                new = OTHER[type(default)](default)
            name = f"{SECTIONS[kind]}.{key}"
            assert f"{name} = " in (found := refused(f"{name}={new}"))
            assert found.endswith("nothing here reads it; leave it out")
            # A saved configuration holds every key.
            same = "''" if default == "" else yaml.safe_dump(default).split()[0]
            configuration.load(EXPERIMENT, pairs=f"{name}={same}")


RATE = "trainer.optimizer_config.learning_rate.cosine"


@pytest.mark.parametrize(
    "pair",
    [
        "trainer.steps_per_loop=0", "trainer.summary_interval=0", "trainer.train_steps=-1",
        "trainer.validation_steps=-2", "trainer.max_to_keep=0", "trainer.loss_upper_bound=.nan",
        "task.train_data.global_batch_size=-4", "task.train_data.unroll_frames=-1",
        "task.groups=0", "task.image_size=[96,0]", "task.image_size=[96,1000000]",
        f"{RATE}.initial_learning_rate=.nan", f"{RATE}.initial_learning_rate=-1",
        f"{RATE}.initial_learning_rate=.inf", f"{RATE}.decay_steps=0", f"{RATE}.alpha=2",
        "task.train_data.seed=99999999999", "trainer.best_checkpoint_export_subdir=../../../x",
        "trainer.best_checkpoint_export_subdir=/x", "trainer.best_checkpoint_export_subdir=..",
        "trainer.validation_summary_subdir=a/b",
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(pair):
    key, _, _ = pair.partition("=")
    assert f"configuration: {key} = " in (found := refused(pair)) and "not allowed" in found


@pytest.mark.parametrize("value", ["tpu", "mirorred", "parameter_server"])
def test_strategies_are_those_there_are(value):
    found = refused(f"runtime.distribution_strategy={value}")
    assert found.endswith("not one of: one_device, mirrored, multi_worker_mirrored")


def bomb(levels=9, width=9):
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\ntask: {{labels: *a{levels - 1}}}\n"


@pytest.mark.parametrize(
    "text, words",
    [
        (bomb(), "holds more than 100000 values"),
        ("task: {labels: " + "[" * 1500 + "]" * 1500 + "}", "nested more than 32 levels deep"),
        ("task: {labels: " + "[" * 60 + "]" * 60 + "}", "nested more than 32 levels deep"),
        ("? " + "x" * 200_000 + "\n: 1", "unknown key"),
        ("task: {name: [" + "y, " * 5_000 + "y]}", "expected str"),
        ("task: {labels: " + "y" * 200_000 + "}", "expected tuple"),
        (f"task: {{groups: 0x{'f' * 90_000}}}", "not allowed: from 1 to 65536"),
        ("a: !" + "z" * 200_000 + " 1", "not valid YAML"),
        ("# " + "w" * 390_000, "longer than 262144 characters"),
        ("a: " + "9" * 5000, "not valid YAML|unknown key"),
    ],
    ids=["aliases", "deep", "nested", "key", "list", "word", "number", "tag", "long", "digits"],
)  # fmt: skip
def test_hostile_files_end_in_one_short_line(tmp_path, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    start = time.process_time()
    assert re.search(words.replace("[", r"\["), refused(file=file))
    assert time.process_time() - start < 20.0


def test_hostile_pairs_end_in_one_short_line():
    assert "nested more than 32" in refused(".".join("a" * 3000) + "=1")
    assert "key=value" in refused("x" * 390_000)
    assert "key=value" in refused("y" * 200_000 + "=1")
    assert "longer than" in refused("y" * 390_000 + "=1")
