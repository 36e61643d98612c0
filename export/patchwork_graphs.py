"""Patchwork as separately runnable graphs (PW figure 1).

`body` has two signatures that share their weights: `window` runs on every frame but the first. It
takes a window of the image and the halos of all its cells, and gives the maps of the window and its
own strips. `full` runs on the first frame and gives the maps and strips of everything. `tail` turns
the full frame's maps into predictions. `attention`, where there is one, turns one of these and the
history of actions into a value of each window. What lies between the calls, reading halos and
writing strips and maps, is copying (`memvid_tf.runtime.patchwork`).
"""

import tensorflow as tf

from export.graphs import SERVING, Graph, Kept
from memvid_tf.models.attention import Attention
from memvid_tf.models.patchwork import Patchwork

HALO, OWN, STRIPS = "halo", "own", "strips"


def patchwork(model: Patchwork) -> dict[str, Graph]:
    """The graphs body and tail, in inference mode."""
    layout, sizes = model.layout, model.map_sizes

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, *model.window_size, 3], tf.float32, "image"),
            tf.TensorSpec([1, layout.halo, layout.chunk], tf.float32, HALO),
        ],
        autograph=False,
    )
    def window(image, halo):
        maps, own = model.body(image, halo)
        return {**maps, OWN: own}

    @tf.function(
        input_signature=[tf.TensorSpec([1, *model.image_size, 3], tf.float32, "image")],
        autograph=False,
    )
    def full(image):
        maps, strips = model.full(image)
        return {**maps, STRIPS: strips}

    specs = [
        tf.TensorSpec([1, *sizes[name], model.map_channels[name]], tf.float32, name)
        for name in sizes
    ]

    @tf.function(input_signature=specs, autograph=False)
    def tail(*maps):
        return model.network.tail(dict(zip(sizes, maps)))

    module = Kept(model)
    return {
        "body": Graph(module, {"window": window, "full": full}),
        "tail": Graph(module, {SERVING: tail}),
    }


def attention_graph(model: Patchwork, attention: Attention, tail: Graph) -> Graph:
    """The graph attention, in inference mode: a prediction of `tail`, one of `patchwork`'s graphs,
    and the history to q_values [1, A]."""
    network, slices = model.network, model.windows.slices
    traced = tail.signatures[SERVING].get_concrete_function()
    prediction = traced.structured_outputs[network.presence_from]

    @tf.function(
        input_signature=[
            tf.TensorSpec(prediction.shape, tf.float32, "prediction"),
            tf.TensorSpec([1, model.windows.count], tf.float32, "history"),
        ],
        autograph=False,
    )
    def decide(prediction, history):
        presence = network.presence({network.presence_from: prediction}, slices)
        return {"q_values": attention(presence, history)}

    return Graph(Kept((model, attention)), {SERVING: decide})


def attention_edges(model: Patchwork) -> tuple[tuple[str, str], ...]:
    """The attention network reads a prediction as it is."""
    return ((f"tail/{SERVING}/{model.network.presence_from}", f"attention/{SERVING}/prediction"),)


def map_edges(model: Patchwork) -> tuple[tuple[str, str], ...]:
    """Edges whose tensors are the same on both ends: the maps of the full frame."""
    return tuple((f"body/full/{name}", f"tail/{SERVING}/{name}") for name in model.map_sizes)


def copied_edges(model: Patchwork) -> tuple[tuple[str, str], ...]:
    """Edges whose values are copied into a part of their other end: all but the shape is equal."""
    return (
        *((f"body/window/{name}", f"tail/{SERVING}/{name}") for name in model.map_sizes),
        (f"body/window/{OWN}", f"body/window/{HALO}"),
        (f"body/full/{STRIPS}", f"body/window/{HALO}"),
    )
