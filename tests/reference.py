"""Independent NumPy versions of what the library computes, written as loops over the equations.

They share no code with `memvid_tf`, work in float64 and are slow. Weights come as plain arrays, in
the layout of TensorFlow: kernels [k, k, in / groups, out], depthwise kernels [k, k, C].
"""

import numpy as np


def randomise(variables, random):
    """Gives every variable of a network a random asymmetric value; none keeps its initial one.

    Kernels are scaled by their fan-in, so that activations neither vanish nor saturate.
    """
    for variable in variables:
        shape = variable.shape.as_list()
        if variable.dtype.is_bool:
            continue
        name = variable.name.split(":")[0].rsplit("/")[-1]
        if name == "kernel":
            # The last axis of a depthwise kernel is 1; only the window feeds an output.
            fan_in = shape[0] * shape[1] * (shape[2] if shape[3] > 1 else 1)
            value = random.normal(0.05, 1.4 / fan_in**0.5, shape)
        elif name in ("scale", "variance"):
            value = random.uniform(0.5, 1.7, shape)
        elif name in ("bias", "mean"):
            value = random.normal(0.1, 0.3, shape)
        elif name.endswith("_min"):
            value = random.uniform(-4.0, -2.0)
        elif name.endswith("_max"):
            value = random.uniform(3.0, 5.0)
        else:
            raise ValueError(f"no distribution for the variable {variable.name}")
        variable.assign(value)


# Quantization (Jacob et al. 2018, section 2.1).


def fake_quant(x, low, high, narrow=False):
    """Rounds to the 8-bit grid of [low, high], nudged so that zero lies on the grid.

    low and high are scalars, or [C] arrays for the last axis of x.
    """
    first, last = (1 if narrow else 0), 255
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    scale = (high - low) / (last - first)
    zero_point = np.clip(np.floor(first - low / scale + 0.5), first, last)
    steps = np.floor(np.asarray(x, np.float64) / scale + 0.5) + zero_point
    return (np.clip(steps, first, last) - zero_point) * scale


def fake_quant_kernel(kernel):
    """Per-channel symmetric narrow-range quantization; the last axis is the channel."""
    out = np.empty(kernel.shape)
    for c in range(kernel.shape[-1]):
        limit = np.abs(kernel[..., c]).max()
        out[..., c] = fake_quant(kernel[..., c], -limit, limit, narrow=True)
    return out


# Convolution and batch normalisation.


def relu6(x):
    return np.clip(x, 0.0, 6.0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _pad_same(x, size, strides):
    """SAME padding of TensorFlow: what is odd goes to the bottom and the right."""
    pads = [(0, 0)]
    for side in x.shape[1:3]:
        total = max((-(-side // strides) - 1) * strides + size - side, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(np.asarray(x, np.float64), pads + [(0, 0)])


def conv(x, kernel, strides=1, groups=1):
    """x [B, H, W, C], kernel [k, k, C / groups, F]; SAME."""
    size, _, per_group, filters = kernel.shape
    batch, height, width, _ = x.shape
    padded = _pad_same(x, size, strides)
    out = np.zeros([batch, -(-height // strides), -(-width // strides), filters])
    for f in range(filters):
        start = f // (filters // groups) * per_group
        for b, i, j in np.ndindex(*out.shape[:3]):
            y0, x0 = i * strides, j * strides
            window = padded[b, y0 : y0 + size, x0 : x0 + size, start : start + per_group]
            out[b, i, j, f] = np.sum(window * kernel[..., f])
    return out


def depthwise(x, kernel, strides=1):
    """x [B, H, W, C], kernel [k, k, C]; SAME."""
    size = kernel.shape[0]
    batch, height, width, channels = x.shape
    padded = _pad_same(x, size, strides)
    out = np.zeros([batch, -(-height // strides), -(-width // strides), channels])
    for b, i, j in np.ndindex(*out.shape[:3]):
        y0, x0 = i * strides, j * strides
        out[b, i, j] = np.sum(padded[b, y0 : y0 + size, x0 : x0 + size] * kernel, (0, 1))
    return out


def moments(y):
    """Mean and (biased) variance of every channel, one value after another."""
    flat = y.reshape(-1, y.shape[-1])
    mean = sum(flat) / len(flat)
    return mean, sum((row - mean) ** 2 for row in flat) / len(flat)


def batch_norm(y, mean, variance, scale, bias, epsilon):
    return (y - mean) / np.sqrt(variance + epsilon) * scale + bias


def fold(kernel, mean, variance, scale, bias, epsilon):
    """Kernel and bias whose convolution is the convolution with `kernel` and then the BN.

    The last axis of kernel is the output channel, in depthwise kernels too.
    """
    factor = scale / np.sqrt(variance + epsilon)
    return kernel * factor, bias - mean * factor


# The memory (LFS 3.2). A separable convolution is the tuple
# (depthwise kernel, its bias, pointwise kernel, its bias); gates are a dict of i, j, f, o.
# `rounded(name, tensor)` is where simulated quantization rounds a tensor; by default it does not.


def _exact(name, tensor):
    return tensor


def separable(x, weights, groups=1, rounded=_exact, name=None):
    """Linear; the result of the pointwise convolution is for the caller to round."""
    depthwise_kernel, depthwise_bias, kernel, bias = weights
    inside = rounded(f"{name}/depthwise", depthwise(x, depthwise_kernel) + depthwise_bias)
    return conv(inside, kernel, groups=groups) + bias


def _update(b, c, gates, rounded):
    """One group: gates {"i": separable weights, ...}, b and c [B, H, W, S / G]."""
    linear = {n: separable(b, gates[n], 1, rounded, "gates") for n in "ijfo"}
    i, f, o = (rounded("sigmoid", sigmoid(rounded(f"gate_{n}", linear[n]))) for n in "ifo")
    j = rounded("state", relu6(linear["j"]))
    kept, added = rounded("state", f * c), rounded("state", i * j)
    next_c = rounded("state", relu6(kept + added))
    return next_c, rounded("state", o * next_c)


def _grouped_cell(c, bottlenecks, gates, rounded):
    """Updates every group on its own; the output is [h'_g of all g, b_g of all g]."""
    next_c, next_h = [], []
    for g, part in enumerate(np.split(c, len(gates), -1)):
        group_c, group_h = _update(bottlenecks[g], part, gates[g], rounded)
        next_c.append(group_c)
        next_h.append(group_h)
    output = np.concatenate(next_h + bottlenecks, -1)
    return output, np.concatenate(next_c, -1), np.concatenate(next_h, -1)


def paper_cell(x, c, h, bottlenecks, gates, rounded=_exact):
    """The literal form: b_g = ReLU6(Sep_{i,g}([x, h_g])).

    Args:
      x: [B, H, W, C_i] features of extractor i.
      c, h: [B, H, W, S].
      bottlenecks: for each group, the separable weights of extractor i.
      gates: for each group, a dict of the separable weights of i, j, f, o.
      rounded: see above.

    Returns:
      M [B, H, W, 2·S], c', h'.
    """
    x, c, h = (rounded("state", tensor) for tensor in (x, c, h))
    b = []
    for g, part in enumerate(np.split(h, len(gates), -1)):
        both = np.concatenate([x, part], -1)
        b.append(separable(both, bottlenecks[g], 1, rounded, f"bottleneck_{g}"))
        b[g] = rounded("state", relu6(b[g]))
    return _grouped_cell(c, b, gates, rounded)


def factored_cell(x, c, h, projections, h_projections, gates, rounded=_exact):
    """The factored form: b_g = ReLU6(P_{i,g}(D_{i,g}(x)) + P_g(D_g(h_g))).

    Args:
      x, c, h, gates, rounded: as `paper_cell`.
      projections: for each group, separable weights of extractor i on all of x.
      h_projections: for each group, separable weights on h_g.
    """
    c, h = rounded("state", c), rounded("state", h)
    b = []
    for g, part in enumerate(np.split(h, len(gates), -1)):
        on_x = rounded("features", separable(x, projections[g], 1, rounded, "projection"))
        on_h = separable(part, h_projections[g], 1, rounded, "h_projection")
        b.append(rounded("state", relu6(on_x + rounded("h_projection", on_h))))
    return _grouped_cell(c, b, gates, rounded)


# SSD (Liu et al. 2016, section 2.2).


def anchors(map_sizes, min_scale, max_scale, ratios, interpolated=True, reduce_lowest=False):
    """Rows of ycenter, xcenter, height, width."""
    maps = len(map_sizes)
    step = (max_scale - min_scale) / (maps - 1) if maps > 1 else 0.0
    scales = [min_scale + k * step for k in range(maps)] + [1.0]
    rows = []
    for k, (height, width) in enumerate(map_sizes):
        for i in range(height):
            for j in range(width):
                if k == 0 and reduce_lowest:
                    boxes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
                else:
                    boxes = [(scales[k], ratio) for ratio in ratios]
                    if interpolated:
                        boxes.append((np.sqrt(scales[k] * scales[k + 1]), 1.0))
                for scale, ratio in boxes:
                    # An area of scale², a width of ratio times the height.
                    h = np.sqrt(scale**2 / ratio)
                    rows.append([(i + 0.5) / height, (j + 0.5) / width, h, h * ratio])
    return np.array(rows)


def corners(anchor):
    y, x, h, w = anchor
    return y - h / 2, x - w / 2, y + h / 2, x + w / 2


def iou(a, b):
    """Of two boxes ymin, xmin, ymax, xmax."""
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = height * width
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def encode(box, anchor):
    """Box coder 10/10/5/5."""
    y, x, h, w = anchor
    height, width = box[2] - box[0], box[3] - box[1]
    return [
        10 * ((box[0] + box[2]) / 2 - y) / h,
        10 * ((box[1] + box[3]) / 2 - x) / w,
        5 * np.log(height / h),
        5 * np.log(width / w),
    ]


def match(anchor_rows, boxes, classes, threshold):
    """One frame: classes [A] and encodings [A, 4] to predict; boxes [N, 4], classes [N], 0 absent.

    Where several objects want the same anchor most, the first of them gets it.
    """
    present = [n for n in range(len(boxes)) if classes[n] > 0]
    owner = [None] * len(anchor_rows)
    for a, anchor in enumerate(anchor_rows):
        best = threshold
        for n in present:
            overlap = iou(boxes[n], corners(anchor))
            if overlap > best or (overlap == best and owner[a] is None):
                best, owner[a] = overlap, n
    for n in reversed(present):
        overlaps = [iou(boxes[n], corners(anchor)) for anchor in anchor_rows]
        owner[int(np.argmax(overlaps))] = n
    target_classes = np.array([0 if n is None else classes[n] for n in owner])
    encodings = np.array(
        [[0.0] * 4 if n is None else encode(boxes[n], a) for n, a in zip(owner, anchor_rows)]
    )
    return target_classes, encodings


def log_softmax(logits):
    shifted = logits - max(logits)
    return shifted - np.log(sum(np.exp(shifted)))


def multibox(encodings, logits, target_classes, target_encodings, ratio, least, positive_weight=1):
    """One frame: classification loss, box loss, number of positives, indices of the negatives.

    The negatives are the `ratio` times as many as positives, at least `least`, whose loss is
    largest; of equal losses the first.
    """
    losses = [-log_softmax(row)[c] for row, c in zip(logits, target_classes)]
    positives = [a for a, c in enumerate(target_classes) if c > 0]
    negatives = [a for a, c in enumerate(target_classes) if c == 0]
    negatives.sort(key=lambda a: -losses[a])  # a stable sort
    negatives = negatives[: max(int(ratio * len(positives)), least)]
    classification = positive_weight * sum(losses[a] for a in positives)
    classification += sum(losses[a] for a in negatives)
    box = 0.0
    for a in positives:
        for error in np.abs(encodings[a] - target_encodings[a]):
            box += 0.5 * error**2 if error < 1.0 else error - 0.5
    return classification, box, len(positives), negatives


def focal(logits, target_classes, gamma, positive_weight=1):
    """One frame: classification loss over all anchors (Lin et al. 2017)."""
    loss = 0.0
    for row, c in zip(logits, target_classes):
        log_p = log_softmax(row)[c]
        loss -= (positive_weight if c > 0 else 1) * (1 - np.exp(log_p)) ** gamma * log_p
    return loss
