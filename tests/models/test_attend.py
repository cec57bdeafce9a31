"""The attention function against a plain softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, softmax_attention
from vdm_jax.models import attention
from vdm_jax.models.attention import Source, attend, split_heads

B, T, P, N, D, L = 2, 3, 4, 2, 8, 5


def qkv():
    return tuple(normal(seed, B, T, P, N, D) for seed in range(3))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", ["", "sources", "pairs"])
def test_along_time_it_is_softmax_attention_over_frames(biased, masked):
    query, key, value = qkv()
    bias = normal(3, N, T, T) if biased else None
    masks = {"": None, "sources": np.bool_([1, 0, 1]), "pairs": np.tril(np.ones((T, T), bool))}
    mask = None if not masked else jnp.asarray(masks[masked])[None, None]
    out = attend(query, Source(key, value, mask), along="time", bias=bias)
    per_pixel = [np.asarray(a).transpose(0, 2, 3, 1, 4) for a in (query, key, value)]
    expected = softmax_attention(*per_pixel, bias=bias if biased else 0.0, mask=masks[masked] if masked else True)
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2, 4), rtol=1e-4, atol=1e-5)


def text(groups, seed=7):
    mask = np.arange(L) < np.array([2, 4])[:, None, None] + np.arange(groups)[:, None] % 2
    return Source(normal(seed, B, groups, L, N, D), normal(seed + 1, B, groups, L, N, D), jnp.asarray(mask))


def plain_space(query, *sources):
    """Copies all sources for every frame and puts them side by side, under one softmax."""
    keys, values, masks = [], [], []
    for source in sources:
        mask = np.ones(source.key.shape[:3], bool) if source.mask is None else np.asarray(source.mask)
        for list_, array in ((keys, source.key), (values, source.value), (masks, mask)):
            array = np.asarray(array)
            list_.append(np.broadcast_to(array, (B, T, *array.shape[2:])))
    key, value = (np.concatenate(a, 2).transpose(0, 1, 3, 2, 4) for a in (keys, values))
    mask = np.concatenate(masks, 2)[:, :, None, None]
    return softmax_attention(np.asarray(query).transpose(0, 1, 3, 2, 4), key, value, mask=mask).transpose(0, 1, 3, 2, 4)


def cases():
    query, key, value = qkv()
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
def test_along_space_it_is_one_softmax_over_all_sources(case, implementation, monkeypatch):
    kernel = jax.nn.dot_product_attention  # stands in for cuDNN's: the arguments are the same
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", lambda *a, implementation, **k: kernel(*a, **k))
    query, *sources = cases()[case]
    out = attend(query, *sources, implementation=implementation)
    np.testing.assert_allclose(out, plain_space(query, *sources), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", cases())
def test_the_fused_kernel_takes_these_shapes_and_has_a_gradient(case, monkeypatch):
    """Runs JAX's checks of shapes, except those of the device, at odd numbers of pixels and tokens."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 92000)
    query, *sources = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), cases()[case])

    def total(query, sources):
        return attend(query[:, :, :3], *sources, implementation="cudnn").sum()

    gradient = jax.eval_shape(jax.grad(total, allow_int=True, argnums=(0, 1)), query, sources)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, (query, sources))


def test_the_fused_kernel_takes_a_padding_mask_of_the_last_source_only():
    query, pixels, last = cases()["pixels_and_shared_text"]
    pairs = pixels._replace(mask=jnp.ones((1, 1, P, P), bool))
    for sources in ((last, pixels), (pairs,)):
        with pytest.raises(ValueError, match="a padding mask of the last source only"):
            attend(query, *sources, implementation="cudnn")


def test_masked_positions_have_no_influence():
    query, source = cases()["shared_text"]
    hidden = ~source.mask[..., None, None]
    garbage = Source(jnp.where(hidden, 1e3, source.key), jnp.where(hidden, -1e3, source.value), source.mask)
    np.testing.assert_array_equal(attend(query, source), attend(query, garbage))

    query, key, value = qkv()
    mask = jnp.ones((1, 1, T, T), bool).at[..., 1].set(False)
    garbage = Source(key.at[:, 1].set(1e3), value.at[:, 1].set(-1e3), mask)
    out = attend(query, Source(key, value, mask), along="time")
    np.testing.assert_array_equal(out, attend(query, garbage, along="time"))


def test_bfloat16_attention_has_a_float32_softmax():
    query, key, value = (a.astype(jnp.bfloat16) for a in qkv())
    out = attend(query, Source(key, value), along="time")
    assert out.dtype == jnp.bfloat16
    expected = softmax_attention(*(np.asarray(a, np.float32).transpose(0, 2, 3, 1, 4) for a in (query, key, value)))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected.transpose(0, 3, 1, 2, 4), atol=0.03)


def test_split_heads_keeps_the_parts_of_a_head_together():
    x = jnp.arange(12.0).reshape(1, 1, 1, 12)
    first, second = split_heads(x, 2, 3)
    np.testing.assert_array_equal(first[0, 0, 0], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(second[0, 0, 0], [[2, 3], [6, 7], [10, 11]])
