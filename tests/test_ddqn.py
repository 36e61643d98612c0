"""Double Q-learning: target, loss, exploration and the update."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.models.policy import Policy, PolicyConfig
from memvid_tf.rl import ddqn
from memvid_tf.rl.replay import Transition

CONFIG = PolicyConfig(branch_channels=3, branch_kernel=3, channels=5, history=4)
MAP = (4, 6, 2)


def test_the_double_q_target_by_hand():
    # The online network picks f1, f0, f1 (ties go to the first); the target network values.
    online = [[1.0, 2.0], [5.0, -1.0], [3.0, 3.0]]
    target = [[10.0, 20.0], [7.0, 99.0], [-4.0, 8.0]]
    found = ddqn.double_q_target(
        tf.constant([0.5, -1.0, 2.0]), tf.constant([0.9, 0.5, 0.0]), tf.constant(online),
        tf.constant(target),
    )  # fmt: skip
    np.testing.assert_allclose(found, [0.5 + 0.9 * 20, -1 + 0.5 * 7, 2.0], rtol=1e-6)


def test_no_gradient_goes_through_the_target():
    online, target = tf.Variable([[1.0, 2.0]]), tf.Variable([[3.0, 4.0]])
    with tf.GradientTape() as tape:
        found = ddqn.double_q_target(tf.ones(1), tf.ones(1), online, target)
    assert tape.gradient(found, [online, target]) == [None, None]


def test_huber_by_hand():
    error = tf.constant([0.0, 0.5, -0.5, 2.0, -3.0])
    np.testing.assert_allclose(ddqn.huber(error, 1.0), [0, 0.125, 0.125, 1.5, 2.5])
    np.testing.assert_allclose(ddqn.huber(error, 2.0), [0, 0.125, 0.125, 2.0, 4.0])
    error = tf.Variable([0.3, 7.0, -7.0])
    with tf.GradientTape() as tape:
        loss = ddqn.huber(error, 2.0)
    np.testing.assert_allclose(tape.gradient(loss, error), [0.3, 2, -2], rtol=1e-6)


def test_epsilon_falls_linearly():
    config = ddqn.DdqnConfig(epsilon_begin=0.8, epsilon_end=0.2, epsilon_steps=4)
    found = [ddqn.epsilon(config, step) for step in range(7)]
    np.testing.assert_allclose(found, [0.8, 0.65, 0.5, 0.35, 0.2, 0.2, 0.2])
    assert ddqn.epsilon(config.replace(epsilon_steps=0), 0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "changes",
    [{"discount": 1.0}, {"epsilon_end": 1.5}, {"batch_size": 0}, {"target_period": 0},
     {"huber_delta": 0.0}, {"least_f0": 0.0}, {"least_f0": 0.6}, {"kernel_decay": -1.0},
     {"reward_scale": 0.0}],
)  # fmt: skip
def test_impossible_settings_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ddqn.check(ddqn.DdqnConfig(**changes))


def observation(rng):
    maps = (rng.integers(0, 256, MAP, np.uint8) for _ in range(4))
    return ddqn.Observation(*maps, rng.integers(0, 2, CONFIG.history).astype(np.uint8))


def learner(scheme=None, **changes):
    tf_keras.utils.set_random_seed(4)
    networks = [Policy(CONFIG, scheme, name=name) for name in ("online", "target")]
    for network in networks:
        zeros = tf.zeros([1, *MAP])
        network((zeros, zeros), (zeros, zeros), tf.zeros([1, CONFIG.history]))
    return ddqn.Learner(*networks, ddqn.DdqnConfig(**changes))


def test_actions():
    agent, rng = learner(), np.random.default_rng(0)
    q_values = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]] * 300, np.float32)
    even = np.full(900, 0.5)
    np.testing.assert_array_equal(agent.act(q_values, 0.0, even, rng), [1, 0, 0] * 300)
    assert abs(agent.act(q_values, 1.0, even, rng).mean() - 0.5) < 0.1
    some = agent.act(q_values, 0.4, even, rng) != np.array([1, 0, 0] * 300)
    assert abs(some.mean() - 0.2) < 0.07  # half of the random actions are the best one anyway
    # Each game by its own chance of f0, which is action 0.
    chances = np.repeat([0.05, 0.9], 450)
    seldom, often = np.split(agent.act(q_values, 1.0, chances, rng) == 0, 2)
    assert abs(seldom.mean() - 0.05) < 0.04 and abs(often.mean() - 0.9) < 0.06


def test_games_explore_from_seldom_to_often():
    found = learner(least_f0=0.02).chances(4000, np.random.default_rng(0))
    assert 0.02 <= found.min() < 0.021 and 0.49 < found.max() <= 0.5
    # Equally many in each of two octaves.
    octaves = [((found >= low) & (found < 2 * low)).mean() for low in (0.03, 0.2)]
    assert abs(octaves[0] - octaves[1]) < 0.04


def test_the_update_is_the_equation():
    agent = learner(discount=0.5, huber_delta=0.3, reward_scale=3.0, kernel_decay=0.02)
    rng = np.random.default_rng(1)
    before, after = ([observation(rng) for _ in range(6)] for _ in range(2))
    actions = np.array([0, 1, 1, 0, 0, 1], np.int32)
    reward = rng.normal(size=6).astype(np.float32)

    def values(policy, observations):
        s = ddqn.stacked(observations)
        c, h, c0, h0 = (tf.constant(x * np.float32(6 / 255)) for x in s[:4])
        return policy((c, h), (c0, h0), tf.constant(s.eta * np.float32(6))).numpy()

    agent.mean_reward.assign(0.7)
    picked = values(agent.online, after).argmax(1)
    wanted = 3 * (reward - 0.7) + 0.5 * values(agent.target, after)[np.arange(6), picked]
    error = np.abs(wanted - values(agent.online, before)[np.arange(6), actions])
    expected = np.where(error <= 0.3, error**2 / 2, 0.3 * (error - 0.15)).mean()
    # Kernels have four axes, biases one.
    kernels = [v.numpy() for v in agent.online.trainable_variables if v.shape.rank == 4]
    assert len(kernels) == 7
    expected += 0.02 * sum((kernel**2).sum() for kernel in kernels)
    batch = Transition(
        ddqn.stacked(before), actions, reward, np.full(6, 0.5, np.float32), ddqn.stacked(after)
    )
    target_before = [v.numpy() for v in agent.target.variables]
    optimizer = tf_keras.optimizers.legacy.SGD(0.1)
    loss = agent.update(batch, optimizer)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert agent.update(batch, optimizer) < loss
    for was, variable in zip(target_before, agent.target.variables):
        np.testing.assert_array_equal(was, variable)


def test_rewards_count_from_their_running_mean():
    agent = learner()
    agent.watch(np.array([1.0, 3.0]), is_first=True)
    assert float(agent.mean_reward) == pytest.approx(2.0)
    agent.watch(np.array([7.0]), is_first=False)
    assert float(agent.mean_reward) == pytest.approx(2.5)


def test_it_learns_which_action_pays():
    agent, rng = learner(Scheme(), discount=0.0), np.random.default_rng(2)
    observations = [observation(rng) for _ in range(8)]
    pays = np.array([0, 1] * 4)
    optimizer = tf_keras.optimizers.legacy.Adam(0.01)
    for _ in range(150):
        at = rng.integers(0, 8, 16)
        actions = rng.integers(0, 2, 16).astype(np.int32)
        s = ddqn.stacked([observations[i] for i in at])
        reward = (actions == pays[at]).astype(np.float32)
        agent.update(Transition(s, actions, reward, np.zeros(16, np.float32), s), optimizer)
    np.testing.assert_array_equal(agent.q_values(observations).argmax(1), pays)


def test_the_target_becomes_the_online_network():
    agent, rng = learner(Scheme()), np.random.default_rng(3)
    s = ddqn.stacked([observation(rng) for _ in range(3)])
    batch = Transition(s, np.zeros(3, np.int32), np.ones(3, np.float32), np.ones(3, np.float32), s)
    agent.update(batch, tf_keras.optimizers.legacy.SGD(0.1))
    agent.copy_to_target()
    pairs = list(zip(agent.online.variables, agent.target.variables, strict=True))
    assert any("range" in online.name for online, _ in pairs)
    for online, target in pairs:
        np.testing.assert_array_equal(online, target)
