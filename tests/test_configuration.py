"""Configurations: what is taken, what is refused and with which words."""

import dataclasses
import os
import pathlib
import re

import pytest
import yaml
from official.core import config_definitions, exp_factory
from official.modeling import hyperparams, optimization

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.errors import UserError
from memvid_tf.models.zoo import headers
from memvid_tf.tasks import configuration

EXPERIMENT = "test_configuration"


@dataclasses.dataclass
class Inner(hyperparams.Config):
    ratios: tuple[float, ...] = (1.0, 0.5)
    switched_on: bool = False


@dataclasses.dataclass
class Model(hyperparams.Config):
    sides: tuple[int, ...] = (320, 240)
    names: list[str] = dataclasses.field(default_factory=lambda: ["f0"])
    groups: int = 4
    scale: float = 0.99
    cell: str = "factored"
    limit: int | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)
    missing: Inner | None = None


@dataclasses.dataclass
class Task(config_definitions.TaskConfig):
    name: str = EXPERIMENT
    model: Model = dataclasses.field(default_factory=Model)


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
        trainer=config_definitions.TrainerConfig(optimizer_config=optimizer),
        restrictions=["task.model.groups <= trainer.train_steps"],
    )


def load(text="", pairs="", folder=None):
    files = []
    if text:
        files = [str(folder / "a.yaml")]
        (folder / "a.yaml").write_text(text)
    return configuration.load(EXPERIMENT, files, f"trainer.train_steps=50,{pairs}".strip(","))


def refused(*contains, pairs="", text="", folder=None):
    """Loading fails with a message that contains all the given words."""
    with pytest.raises(UserError) as caught:
        load(text, pairs, folder)
    for word in contains:
        assert word in str(caught.value), str(caught.value)


def test_later_ones_override_earlier_ones(tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("task: {model: {groups: 5, cell: paper, inner: {ratios: [3, 0.25]}}}")
    second.write_text("task:\n  model: {groups: 6, sides: [64, 32]}\ntrainer: {train_steps: 70}")
    files = [str(first), str(second)]
    params = configuration.load(EXPERIMENT, files, "task.model.groups=7,task.model.limit=2")
    model = params.task.model
    assert (model.groups, model.limit, model.cell) == (7, 2, "paper")
    assert tuple(model.sides) == (64, 32) and tuple(model.inner.ratios) == (3, 0.25)
    assert model.scale == 0.99 and params.trainer.train_steps == 70
    # The defaults of the experiment are untouched.
    assert exp_factory.get_exp_config(EXPERIMENT).task.model.groups == 4


@pytest.mark.parametrize(
    "pairs, value",
    [
        ("task.model.scale=1", 1),
        ("task.model.scale=.5", 0.5),
        ("task.model.scale=1e-3", 0.001),
        ("task.model.scale=-2.5E+2", -250.0),
        ("task.model.limit=null", None),
        ("task.model.limit=3", 3),
        ("task.model.sides=[1,2,3]", [1, 2, 3]),
        ("task.model.names=[a, b]", ["a", "b"]),
        ("task.model.names=[]", []),
        ("task.model.inner.switched_on=true", True),
        ("task.model.cell='a,b=c'", "a,b=c"),
        ("task.model.cell=gs://bucket/folder", "gs://bucket/folder"),
        ("task.model.cell=1e", "1e"),
    ],
)
def test_pairs(pairs, value):
    node = load(pairs=pairs)
    for key in pairs.partition("=")[0].split("."):
        node = getattr(node, key)
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    "key, known",
    [
        ("optimizer", "runtime, task, trainer"),
        ("task.mdel", "train_data, validation_data"),
        ("task.model.group", "groups"),
        ("task.model.inner.ratio", "ratios, switched_on"),
        ("task.model.missing.ratio", "ratios, switched_on"),
        ("trainer.optimizer_config.ema.averge_decay", "average_decay"),
        ("trainer.optimizer_config.optimizer.adam.beta", "beta_1"),
        ("trainer.optimizer_config.optimizer.adm", "adam"),
    ],
)
@pytest.mark.parametrize("as_yaml", [True, False], ids=["yaml", "pairs"])
def test_an_unknown_key_at_any_depth_is_named(tmp_path, key, known, as_yaml):
    if as_yaml:
        nested = 7
        for part in reversed(key.split(".")):
            nested = {part: nested}
        refused(f"unknown key '{key}'", known, text=yaml.safe_dump(nested), folder=tmp_path)
    else:
        refused(f"unknown key '{key}'", known, pairs=f"{key}=7")


@pytest.mark.parametrize(
    "pair, kind",
    [
        ("task.model.groups=abc", "expected int"),
        ("task.model.groups=1.5", "expected int"),
        ("task.model.groups=2.0", "expected int"),
        ("task.model.groups=true", "expected int"),
        ("task.model.groups=null", "expected int"),
        ("task.model.groups=[1]", "expected int"),
        ("task.model.scale=abc", "expected float"),
        ("task.model.scale=false", "expected float"),
        ("task.model.inner.switched_on=1", "expected bool"),
        ("task.model.inner.switched_on='true'", "expected bool"),
        ("task.model.cell=5", "expected str"),
        ("task.model.sides=320", "expected tuple[int, ...]"),
        ("task.model.sides=abc", "expected tuple[int, ...]"),
        ("task.model.sides=[1.5]", "expected tuple[int, ...]"),
        ("task.model.sides=[true]", "expected tuple[int, ...]"),
        ("task.model.names=f0", "expected list[str]"),
        ("task.model.names=[1]", "expected list[str]"),
        ("task.model.limit=1.5", "expected int | None"),
        ("task.train_data.seed=abc", "expected Optional[int]"),
        ("task.model.groups.x=1", "expected int"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(pair, kind):
    key, _, value = pair.partition("=")
    key = key.removesuffix(".x")
    refused(f"configuration: {key} = ", kind, pairs=pair)
    if value.isalnum() and value not in ("true", "false", "null"):
        refused(value, pairs=pair)


@pytest.mark.parametrize("value", ["3", "[1]", "abc", "null"])
def test_a_section_takes_no_value(tmp_path, value):
    for key in ("task", "task.model", "task.model.inner"):
        refused(f"{key} is a section, got ", pairs=f"{key}={value}")
    refused("task is a section, got None", text="task:\n", folder=tmp_path)


def test_a_section_that_was_missing_can_be_given():
    missing = load(pairs="task.model.missing.ratios=[4]").task.model.missing
    assert isinstance(missing, Inner) and missing.as_dict() == {"ratios": [4], "switched_on": False}
    refused("task.model.missing.ratios = [True]", pairs="task.model.missing.ratios=[true]")


def test_alternatives_can_be_chosen_and_set_in_one_go():
    prefix = "trainer.optimizer_config.optimizer"
    params = load(pairs=f"{prefix}.type=sgd,{prefix}.sgd.momentum=.7")
    assert params.trainer.optimizer_config.optimizer.get().momentum == 0.7
    refused(f"{prefix}.type = 'foo' is not one of: ", "adam", "sgd", pairs=f"{prefix}.type=foo")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1, 2", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("\tx: 1", "is not valid YAML"),
        ("x: 2020-13-45", "is not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("- 1\n- 2", "holds no sections"),
        ("just words", "holds no sections"),
        ("# nothing\n", "holds no sections"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, words):
    refused(words, text=text, folder=tmp_path)
    if "key" not in words:
        refused("a.yaml", text=text, folder=tmp_path)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00x: \x80")
    with pytest.raises(UserError, match="a.yaml.* is not valid YAML"):
        configuration.load(EXPERIMENT, [str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(repr(path)) + " cannot be read"):
        configuration.load(EXPERIMENT, [path])


@pytest.mark.parametrize("pairs", ["abc", "a=1,b", "1=2", "a={", "=3", "a.b=[1"])
def test_pairs_that_are_none(pairs):
    with pytest.raises(UserError) as caught:
        configuration.load(EXPERIMENT, pairs=pairs)
    assert repr(pairs) in str(caught.value) and "key=value" in str(caught.value)


def test_an_unknown_experiment_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'interleved' is not one of: .*" + EXPERIMENT):
        configuration.load("interleved")


def test_values_that_contradict_each_other_are_named():
    refused("task.model.groups", "trainer.train_steps", pairs="task.model.groups=51")


def test_a_saved_configuration_loads_as_it_was(tmp_path):
    pairs = (
        "task.model.sides=[1,2,3],task.model.inner.ratios=[.1,2],task.model.names=[x,'1',true_],"
        "task.model.scale=1e-9,task.model.missing.switched_on=true,task.model.limit=5,"
        "trainer.optimizer_config.optimizer.type=sgd,task.init_checkpoint='a: #b',"
        "trainer.optimizer_config.learning_rate.cosine.initial_learning_rate=0.00001"
    )
    params = load(pairs=pairs)
    configuration.save(params, str(tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == ["params.yaml"]
    again = configuration.load_saved(str(tmp_path / "run"))
    assert configuration.difference(params.as_dict(), again.as_dict()) is None
    model = again.task.model
    assert isinstance(model, Model) and isinstance(model.missing, Inner)
    assert tuple(model.sides) == (1, 2, 3) and model.scale == 1e-9
    assert list(model.names) == ["x", "1", "true_"]
    assert again.task.init_checkpoint == "a: #b"
    # It is plain YAML: tuples would have become Python objects, which no safe reader takes.
    plain = yaml.safe_load((tmp_path / "run" / "params.yaml").read_text())
    assert plain["task"]["model"]["sides"] == [1, 2, 3]


def test_a_folder_without_a_saved_configuration_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(repr(str(tmp_path))) + " holds no params.yaml"):
        configuration.load_saved(str(tmp_path))


@pytest.mark.parametrize("content", ["trainer: {train_steps: 50}", "task: 3", "task: {name: 5}"])
def test_a_saved_configuration_that_names_no_experiment(tmp_path, content):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match="task.name"):
        configuration.load_saved(str(tmp_path))


def test_difference():
    a = load(pairs="task.model.sides=[3,4]").as_dict()
    b = load(pairs="task.model.sides=[3,4],task.model.inner.ratios=[9.5]").as_dict()
    assert configuration.difference(a, a) is None
    found = configuration.difference(a, b)
    assert found == "task.model.inner.ratios is [1.0, 0.5] there and [9.5] here"
    # Lists and tuples are the same; a key that is missing is a value that is None.
    assert configuration.difference({"a": (1, 2), "b": None}, {"a": [1, 2]}) is None
    assert configuration.difference({}, {"a": {"b": 1}}) == "a is None there and {'b': 1} here"


def detection_experiment():
    """The name of the real experiment, registered."""
    from memvid_tf.tasks import detection

    return detection.EXPERIMENT


def test_the_defaults_of_the_detector_survive_saving(tmp_path):
    params = configuration.load(detection_experiment())
    configuration.save(params, str(tmp_path))
    again = configuration.load_saved(str(tmp_path))
    assert configuration.difference(params.as_dict(), again.as_dict()) is None
    assert type(again.task) is type(params.task)
    assert type(again.task.model) is type(params.task.model)


def test_the_detector_refuses_what_it_does_not_know():
    for pairs, words in (
        ("task.model.depth_multiplier=1", "depth_multiplier_f0"),
        ("task.model.anchors.ratios=[1]", "aspect_ratios"),
        ("task.losses.gamma=2", "focal_gamma"),
        ("task.train_data.unroll_frames=six", "expected int"),
        ("task.f0_probability=half", "expected float"),
        ("task.model.image_size=320", "expected tuple[int, ...]"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            configuration.load(detection_experiment(), pairs=pairs)


# Policies take their network from another training.
CONFIGS = sorted(
    path
    for path in (pathlib.Path(__file__).resolve().parents[1] / "configs").glob("interleaved_*.yaml")
    if not path.stem.endswith("_policy")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_load_with_the_command_of_their_header(path):
    from memvid_tf.tasks import training  # noqa: F401  (registers all experiments)

    command = headers.training_command(path)
    names = command.all("config_file")  # several where one is laid over another
    assert names and names[-1] == f"configs/{path.name}"
    experiment = command.one("experiment", detection_experiment())
    files = [str(path.parent.parent / name) for name in names]
    params = configuration.load(experiment, files)
    if experiment == detection_experiment():
        check_network(params.task)


def check_network(task):
    """Builds the network and compares what it takes with what the data gives."""
    from memvid_tf.models import interleaved

    model = interleaved.build(task.model)
    size = tuple(task.model.image_size)
    assert tuple(task.train_data.image_size) == tuple(task.validation_data.image_size) == size
    stride = model.extractors["f0"].stride
    assert model.map_size == tuple(side // stride for side in size)


def test_there_are_configurations():
    assert CONFIGS
