"""Attention against a plain softmax in float64, and what tells it about time."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.models import attention
from vdm_jax.models.attention import (
    Source,
    attend_space,
    attend_time,
    choose_implementation,
    clip_mask,
    grid_code,
    relative_positions,
    rotate,
    sinusoid,
)

B, T, P, N, D, L = 2, 3, 4, 2, 8, 5
T4, A100, H100 = (SimpleNamespace(platform="gpu", compute_capability=n) for n in ("7.5", "8.0", "9.0"))
MI300 = SimpleNamespace(platform="gpu", compute_capability="gfx942")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(query, key, value, bias=0.0, mask=True):
    """softmax(q kᵀ/√D + bias) v over the last two axes, in float64."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scores = np.where(mask, query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]) + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def qkv():
    return tuple(normal(seed, B, T, P, N, D) for seed in range(3))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_time_is_softmax_attention_over_frames(biased, masked):
    bias = normal(3, N, T, T) if biased else None
    mask = np.tril(np.ones((T, T), bool)) if masked else None
    out = attend_time(*map(jnp.asarray, qkv()), bias=_array(bias), mask=_array(mask))
    per_pixel = [a.transpose(0, 2, 3, 1, 4) for a in qkv()]
    expected = plain(*per_pixel, bias=bias if biased else 0.0, mask=mask if masked else True)
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2, 4), rtol=1e-4, atol=1e-5)


def _array(x):
    return None if x is None else jnp.asarray(x)


def text(groups, seed=7):
    mask = np.arange(L) < np.array([2, 4])[:, None, None] + np.arange(groups)[:, None] % 2
    return Source(
        jnp.asarray(normal(seed, B, groups, L, N, D)),
        jnp.asarray(normal(seed + 1, B, groups, L, N, D)),
        jnp.asarray(mask),
    )


def plain_space(query, *sources):
    """All sources, copied for every frame and put side by side, under one softmax."""
    keys, values, masks = [], [], []
    for source in sources:
        mask = np.ones(source.key.shape[:3], bool) if source.mask is None else np.asarray(source.mask)
        for list_, array in ((keys, source.key), (values, source.value), (masks, mask)):
            array = np.asarray(array)
            list_.append(np.broadcast_to(array, (B, T, *array.shape[2:])))
    key, value = (np.concatenate(a, 2).transpose(0, 1, 3, 2, 4) for a in (keys, values))
    mask = np.concatenate(masks, 2)[:, :, None, None]
    return plain(query.transpose(0, 1, 3, 2, 4), key, value, mask=mask).transpose(0, 1, 3, 2, 4)


def cases():
    query, key, value = map(jnp.asarray, qkv())
    pixels = Source(key, value)
    return {
        "pixels": (query, pixels),
        "shared_text": (query, text(1)),
        "text_for_each_frame": (query, text(T)),
        "pixels_and_shared_text": (query, pixels, text(1)),
        "pixels_and_text_for_each_frame": (query, pixels, text(T)),
    }


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_attend_space_is_one_softmax_over_all_sources(case, implementation, monkeypatch):
    kernel = jax.nn.dot_product_attention  # stands in for cuDNN's: the arguments are the same
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", lambda *a, implementation, **k: kernel(*a, **k))
    query, *sources = cases()[case]
    out = attend_space(query, *sources, implementation=implementation)
    np.testing.assert_allclose(out, plain_space(np.asarray(query), *sources), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", cases())
def test_the_fused_kernel_takes_these_shapes_and_has_a_gradient(case, monkeypatch):
    """Its checks of shapes, of which JAX does all but those of the device, at odd numbers of pixels and tokens."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 92000)
    query, *sources = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), cases()[case])

    def total(query, sources):
        return attend_space(query[:, :, :3], *sources, implementation="cudnn").sum()

    gradient = jax.eval_shape(jax.grad(total, allow_int=True, argnums=(0, 1)), query, sources)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, (query, sources))


def test_the_fused_kernel_takes_a_mask_of_the_last_source_only():
    query, pixels, last = cases()["pixels_and_shared_text"]
    with pytest.raises(ValueError, match="a mask of the last source only"):
        attend_space(query, last, pixels, implementation="cudnn")


def test_masked_positions_have_no_influence():
    query, source = cases()["shared_text"]
    hidden = ~source.mask[..., None, None]
    garbage = Source(jnp.where(hidden, 1e3, source.key), jnp.where(hidden, -1e3, source.value), source.mask)
    np.testing.assert_array_equal(attend_space(query, source), attend_space(query, garbage))

    query, key, value = map(jnp.asarray, qkv())
    mask = jnp.ones((T, T), bool).at[:, 1].set(False)
    garbage = key.at[:, 1].set(1e3), value.at[:, 1].set(-1e3)
    out = attend_time(query, key, value, mask=mask)
    np.testing.assert_array_equal(out, attend_time(query, *garbage, mask=mask))


def test_bfloat16_attention_has_a_float32_softmax():
    query, key, value = (jnp.asarray(a, jnp.bfloat16) for a in qkv())
    out = attend_time(query, key, value)
    assert out.dtype == jnp.bfloat16
    expected = plain(*(np.asarray(a, np.float32).transpose(0, 2, 3, 1, 4) for a in (query, key, value)))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected.transpose(0, 3, 1, 2, 4), atol=0.03)


def test_rotary_scores_depend_only_on_offsets_and_keep_lengths():
    same = jnp.broadcast_to(jnp.asarray(normal(0, N, D)), (1, T, 1, N, D))
    other = jnp.broadcast_to(jnp.asarray(normal(1, N, D)), (1, T, 1, N, D))

    def scores(start):
        positions = start + jnp.arange(T, dtype=jnp.float32)
        return jnp.einsum("btpnd,bspnd->nts", rotate(same, positions), rotate(other, positions))

    at_zero = np.asarray(scores(0.0))
    np.testing.assert_allclose(scores(40.0), at_zero, atol=1e-4)
    for offset in (-1, 0, 1):
        diagonal = at_zero.diagonal(offset, 1, 2)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5)
    assert np.abs(at_zero[:, 0, 1] - at_zero[:, 1, 0]).max() > 0.1  # forward is not backward
    rotated = rotate(same, jnp.arange(T, dtype=jnp.float32))
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(same, axis=-1), rtol=1e-5)


def test_relative_positions_index_clipped_offsets():
    index = relative_positions(4, 2)
    # Row: the frame that looks; column: the frame looked at. Index 2 is "itself".
    np.testing.assert_array_equal(index, [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]])


def test_sinusoid_is_cosines_then_sines():
    out = sinusoid(jnp.array([0.0, 3.0]), 8)
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(out[0], [1] * 4 + [0] * 4)
    np.testing.assert_allclose(out[1], np.r_[np.cos(3 * frequencies), np.sin(3 * frequencies)], rtol=1e-5)


def test_grid_code_is_the_code_of_the_row_then_of_the_column():
    out = grid_code(3, 5, 8)
    assert out.shape == (3, 5, 8)
    np.testing.assert_allclose(out[2, 3, :4], sinusoid(jnp.array(2.0), 4), rtol=1e-6)
    np.testing.assert_allclose(out[2, 3, 4:], sinusoid(jnp.array(3.0), 4), rtol=1e-6)


def test_clip_mask_keeps_stills_to_themselves():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(clip_mask(4, 2), np.array(expected, bool))
    assert clip_mask(4, 0).all()


@pytest.mark.parametrize(
    ("name", "dtype", "head_size", "device", "chosen"),
    [
        ("auto", "bfloat16", 64, H100, "cudnn"),
        ("auto", "float32", 64, H100, "xla"),
        ("auto", "bfloat16", 12, H100, "xla"),
        ("auto", "bfloat16", 256, H100, "xla"),
        ("auto", "bfloat16", 64, T4, "xla"),
        ("auto", "bfloat16", 64, MI300, "xla"),
        ("auto", "bfloat16", 64, SimpleNamespace(platform="tpu"), "xla"),
        ("auto", "bfloat16", 64, None, "xla"),
        ("cudnn", "float16", 128, A100, "cudnn"),
        ("xla", "bfloat16", 64, H100, "xla"),
    ],
)
def test_implementation_is_the_fused_kernel_where_it_can_run(name, dtype, head_size, device, chosen):
    assert choose_implementation(name, dtype=dtype, head_size=head_size, device=device) == chosen


@pytest.mark.parametrize(
    ("name", "dtype", "head_size", "device", "message"),
    [
        ("flash", "bfloat16", 64, H100, "attention='flash' must be one of auto, xla, cudnn"),
        ("cudnn", "float32", 64, H100, "dtype=float32 is not 16-bit"),
        ("cudnn", "bfloat16", 20, H100, "head_size=20 is not a multiple of 8"),
        ("cudnn", "bfloat16", 64, T4, "compute capability '7.5' is not 8.0 or more"),
    ],
)
def test_implementation_that_cannot_run_is_an_error(name, dtype, head_size, device, message):
    with pytest.raises(InputError, match=message):
        choose_implementation(name, dtype=dtype, head_size=head_size, device=device)
