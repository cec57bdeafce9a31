"""The Optax chain does what the config says, and says so where it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.training.optimizer import ema_decay, learning_rate, make_optimizer


def test_cosine_warms_up_linearly_peaks_and_ends_at_its_final_share():
    rate = learning_rate(peak=0.4, warmup=10, steps=110, decay="cosine", final=0.1)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 60, 110)], [0, 0.2, 0.4, 0.22, 0.04], rtol=1e-6)


def test_constant_stays_at_its_peak_after_the_warm_up():
    rate = learning_rate(peak=0.4, warmup=10, steps=110, decay="constant")
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 60, 110)], [0, 0.2, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_without_warm_up_the_first_step_has_the_whole_rate(decay):
    assert learning_rate(peak=0.4, warmup=0, steps=10, decay=decay)(0) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"decay": "linear"}, "'linear' must be one of cosine, constant"),
        ({"warmup": 100}, "warmup=100 must be at least 0 and below steps=100"),
        ({"warmup": -1}, "warmup=-1"),
        ({"peak": 0.0}, "learning_rate=0.0 must be positive"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        learning_rate(**{"peak": 0.1, "warmup": 10, "steps": 100, "decay": "cosine"} | wrong)


def update(tx, grads):
    params = jnp.zeros_like(grads)
    tx = optax.with_extra_args_support(tx)
    return tx.update(grads, tx.init(params), params, norm=optax.tree.norm(grads))[0]


def test_gradients_are_clipped_to_the_global_norm():
    grads = jnp.array([30.0, 40.0])
    clipped = update(make_optimizer("sgd", lambda step: 1.0, clip=1.0), grads)
    np.testing.assert_allclose(clipped, [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(update(make_optimizer("sgd", lambda step: 1.0, clip=100), grads), -grads)
    np.testing.assert_allclose(update(make_optimizer("sgd", lambda step: 1.0, clip=None), grads), -grads)


def test_clipping_is_that_of_optax():
    grads = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[12.0]])}
    ours = optax.with_extra_args_support(make_optimizer("sgd", lambda step: 1.0, clip=2.0))
    theirs = optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(1.0))
    for scale in (1.0, 0.1, 0.0):
        scaled = jax.tree.map(lambda g, scale=scale: scale * g, grads)
        expected, _ = theirs.update(scaled, theirs.init(scaled))
        actual, _ = ours.update(scaled, ours.init(scaled), norm=optax.tree.norm(scaled))
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), actual, expected)


def test_options_reach_the_optimizer_and_contributed_ones_are_found():
    grads, params = jnp.array([0.0]), jnp.array([2.0])
    tx = make_optimizer("adamw", lambda step: 0.1, weight_decay=0.5)
    np.testing.assert_allclose(tx.update(grads, tx.init(params), params)[0], [-0.1], rtol=1e-6)
    assert isinstance(make_optimizer("ademamix", optax.constant_schedule(1e-3)), tuple)  # of optax.contrib


def test_muon_orthogonalises_each_matrix_of_stacked_blocks_and_leaves_their_vectors_to_adam():
    def draw(*shape):
        return jax.random.normal(jax.random.key(len(shape) * sum(shape)), shape)

    vectors = {"up": {"bias": draw(3, 6)}, "norm": {"scale": draw(3, 4)}, "block": {"table": draw(3, 6)}}
    stacked = vectors | {"up": {"kernel": draw(3, 4, 6)} | vectors["up"]}
    muon = make_optimizer("muon", lambda step: 1.0)
    updates = first_update(muon, stacked)
    each = [first_update(muon, jax.tree.map(lambda x, i=i: x[i], stacked)) for i in range(3)]
    jax.tree.map(lambda a, *e: np.testing.assert_allclose(a, jnp.stack(e), atol=1e-5), updates, *each)
    del updates["up"]["kernel"]
    adam = first_update(make_optimizer("adamw", lambda step: 1.0, weight_decay=0, nesterov=True), vectors)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), updates, adam)


def first_update(tx, grads):
    """Returns the first update of parameters that are zero."""
    params = jax.tree.map(jnp.zeros_like, grads)
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "adamw2"}, "name='adamw2' must be an optimizer of optax"),
        ({"name": "global_norm"}, "name='global_norm' must be an optimizer of optax"),
        ({"name": "contrib"}, "name='contrib' must be an optimizer"),
        ({"name": "adamw", "beta": 0.9}, "options.beta is no option of optax.adamw; it has b1, b2"),
        ({"name": "lbfgs"}, "name='lbfgs' cannot be used"),
        ({"name": "schedule_free"}, "name='schedule_free' cannot be used"),
        ({"name": "adamw", "b1": "high"}, "name='adamw' cannot be used with options={'b1': 'high'}"),
        ({"name": "sgd", "clip": 0.0}, "clip=0.0 must be positive"),
    ],
)
def test_unknown_optimizers_and_options_are_refused(arguments, words):
    name = arguments.pop("name")
    with pytest.raises(InputError, match=words):
        make_optimizer(name, lambda step: 0.1, **arguments)


def test_the_average_warms_up():
    decays = [float(ema_decay(jnp.int32(step), 0.999)) for step in (0, 90, 8990, 100_000)]
    np.testing.assert_allclose(decays, [0.1, 0.91, 0.999, 0.999], rtol=1e-5)


def test_muon_keeps_the_matrices_of_stacked_blocks_apart():
    """Two blocks in a stack are updated as two networks: a matrix by Muon, and all vectors by Adam."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    sizes = {"kernel": (2, 6, 4), "bias": (2, 4)}
    stack = {"layers": {"up": {name: jax.random.normal(next(keys), size) for name, size in sizes.items()}}}
    stack["layers"]["norm"] = {"scale": jax.random.normal(next(keys), (2, 6))}
    stack["layers"]["table"] = jax.random.normal(next(keys), (2, 6, 4))
    blocks = [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(2)]
    params = jax.tree.map(jnp.zeros_like, (stack, *blocks))
    together, *apart = (step("muon", *pair) for pair in zip(params, (stack, *blocks), strict=True))
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, np.stack(y), rtol=1e-5), together, *apart)
    singular = np.linalg.svd(together["layers"]["up"]["kernel"], compute_uv=False)
    assert np.ptp(singular) < 0.6 * singular.mean()  # the step of Muon is nearly orthogonal
    for vectors in (together["layers"]["up"]["bias"], together["layers"]["norm"]["scale"], together["layers"]["table"]):
        np.testing.assert_allclose(np.abs(vectors), np.abs(vectors).max(), rtol=1e-3)  # Adam's first step has one size


def step(name, params, grads):
    tx = optax.with_extra_args_support(make_optimizer(name, lambda step: 1.0))
    return tx.update(grads, tx.init(params), params, norm=optax.tree.norm(grads))[0]
