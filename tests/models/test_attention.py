"""Every argument of the attention module, against a plain softmax in float64 over all positions."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised, softmax_attention
from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention, choose_implementation
from vdm_jax.models.layout import ONE_DEVICE

B, T, P, N, D, L = 2, 3, 4, 2, 8, 5
C, E = 6, 7  # widths of pixels and of tokens
T4, A100, H100 = (SimpleNamespace(platform="gpu", compute_capability=n) for n in ("7.5", "8.0", "9.0"))
MI300 = SimpleNamespace(platform="gpu", compute_capability="gfx942")


# ---------------------------------------------------------------------------------------------- the module


def product(linear, x):
    """Applies a linear layer in float64."""
    out = np.asarray(x, np.float64) @ np.asarray(linear.kernel[...], np.float64)
    return out if linear.bias is None else out + np.asarray(linear.bias[...], np.float64)


def normalised(norm, x, over):
    """Divides each head, or all heads together, by its root mean square."""
    flat = x if over == "head" else x.reshape(*x.shape[:-2], -1)
    out = flat / np.sqrt(np.mean(flat**2, -1, keepdims=True) + norm.epsilon) * np.asarray(norm.scale[...], np.float64)
    return out.reshape(x.shape)


def rotated(x, angles, interleaved):
    """Rotates pairs of channels as complex numbers."""
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * np.asarray(angles, np.float64))
    if interleaved:
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    return np.concatenate([turned.real, turned.imag], -1)


def reference(module, x, text=None, *, text_mask=None, mask=None, angles=None):
    """Attends from every pixel of every frame to all pixels and tokens at once; whatever is out of reach is masked."""
    heads = module.heads
    batch, frames, pixels, _ = x.shape

    def parts(linear, tokens, count):
        return np.moveaxis(product(linear, tokens).reshape(*tokens.shape[:-1], heads, count, -1), -2, 0)

    has_text, only = module.context is not None, module.context == "only"
    if module.fused and not only:
        query, *keys_values = parts(module.qkv, x, 3)
    elif module.fused:
        (query,), keys_values = parts(module.q, x, 1), []
    else:
        source = text if only else x
        query, *keys_values = (parts(module.q, x, 1)[0], parts(module.k, source, 1)[0], parts(module.v, source, 1)[0])
    text_pair = None
    if only:
        text_pair, keys_values = (keys_values or parts(module.text_kv, text, 2)), []
    elif has_text:
        text_pair = parts(module.text_kv, text, 2)
    if module.qk_norm:
        query = normalised(module.q_norm, query, module.qk_norm)
        keys_values[:1] = [normalised(module.k_norm, key, module.qk_norm) for key in keys_values[:1]]
        if text_pair is not None:
            text_pair = normalised(module.k_norm, text_pair[0], module.qk_norm), text_pair[1]
    if angles is not None:
        query, keys_values[0] = (rotated(part, angles, module.interleaved) for part in (query, keys_values[0]))

    out = np.zeros((batch, frames, pixels, heads, query.shape[-1]))
    for b, t, p in np.ndindex(batch, frames, pixels):
        keys, values, allowed, bias = [], [], [], []
        for s, r in np.ndindex(frames, pixels) if keys_values else ():
            near = {"space": s == t, "time": r == p, "all": True}[module.along]
            # The mask's axes: queries and sources are the positions of a frame, the frames of a pixel, or all.
            lead, q, k = {"space": (t, p, r), "time": (p, t, s)}.get(module.along, (0, t * pixels + p, s * pixels + r))
            if mask is not None:
                row = mask[b % len(mask), lead % mask.shape[1]]
                near &= bool(row[q, k] if row.ndim == 2 else row[k])
            if module.causal:
                near &= k <= q
            keys.append(keys_values[0][b, s, r])
            values.append(keys_values[1][b, s, r])
            allowed.append(near)
            offset = np.clip(s - t, -module.max_distance, module.max_distance) + module.max_distance
            bias.append(np.asarray(module.bias[...])[offset] if module.position == "relative" else np.zeros(heads))
        for j in range(text.shape[2] if has_text else 0):
            group = t % text.shape[1]
            keys.append(text_pair[0][b, group, j])
            values.append(text_pair[1][b, group, j])
            allowed.append(text_mask is None or bool(text_mask[b, group, j]))
            bias.append(np.zeros(heads))
        for h in range(heads):
            key, value = (np.stack(rows)[:, h] for rows in (keys, values))
            out[b, t, p, h] = softmax_attention(
                query[b, t, p, h][None], key, value, np.stack(bias)[:, h], np.array(allowed)
            )[0]
    return product(module.out, out.reshape(batch, frames, pixels, -1))


ONLY, JOINT = dict(text_width=E, context="only"), dict(text_width=E, context="joint")
MODULES = {
    "space": dict(),
    "time": dict(along="time"),
    "all": dict(along="all"),
    "space, fused": dict(fused=True),
    "time, fused": dict(along="time", fused=True),
    "space, biased": dict(biased="qkv"),
    "space, biased values": dict(biased="v"),
    "a head size of its own": dict(head_size=5, fused=True),
    "joint": dict(**JOINT),
    "joint, fused": dict(**JOINT, fused=True),
    "joint, all": dict(**JOINT, along="all", fused=True),
    "only": dict(**ONLY),
    "only, fused": dict(**ONLY, fused=True),
    "only, along time": dict(**ONLY, along="time"),  # the axis is that of the first attention of a block
    "relative": dict(along="time", position="relative", max_distance=1),
    "qk norm": dict(qk_norm="head"),
    "qk norm, all heads": dict(qk_norm="all"),
    "qk norm, joint": dict(**JOINT, qk_norm="head", fused=True),
    "qk norm, only": dict(**ONLY, qk_norm="head", fused=True),
    "qk norm, all heads, only": dict(**ONLY, qk_norm="all"),
    "causal": dict(causal=True),
    "causal, time": dict(along="time", causal=True),
    "causal, all": dict(along="all", causal=True),
}


def make(**options):
    return randomised(lambda: Attention(C, heads=N, **options, rngs=nnx.Rngs(0)))


def run(module, *args, **kwargs):
    return np.asarray(jax.jit(lambda args, kwargs: module(*args, **kwargs))(args, kwargs))


def token_mask(groups):
    return np.broadcast_to(np.arange(L) < np.array([2, 4])[:, None, None], (B, groups, L))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_its_arguments_say(name):
    module, x = make(**MODULES[name]), normal(0, B, T, P, C)
    if module.context is None:
        np.testing.assert_allclose(run(module, x), reference(module, x), atol=1e-5)
        return
    for groups in (1, T) if module.along != "all" else (1,):
        tokens, mask = normal(1, B, groups, L, E), token_mask(groups)
        np.testing.assert_allclose(run(module, x, tokens), reference(module, x, tokens), atol=1e-5)
        masked = run(module, x, tokens, text_mask=mask)
        np.testing.assert_allclose(masked, reference(module, x, tokens, text_mask=mask), atol=1e-5)


@pytest.mark.parametrize("along", ["time", "all"])
@pytest.mark.parametrize("options", [dict(), dict(interleaved=True), dict(qk_norm="head", fused=True)])
def test_rotary_positions_turn_queries_and_keys(along, options):
    module, x = make(along=along, head_size=4, **options), normal(0, B, T, P, C)
    for shape in ((T, 1, 1, 2), (T, P, N, 2)):
        angles = normal(1, *shape)
        np.testing.assert_allclose(run(module, x, angles=angles), reference(module, x, angles=angles), atol=1e-5)


SIZES = {"space": (T, P), "time": (P, T), "all": (1, T * P)}  # lead axis, and positions that see each other


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name", ["space", "time", "all", "joint", "causal", "causal, time"])
def test_a_mask_is_of_each_source_or_of_each_pair(name, pairs):
    module, x, rng = make(**MODULES[name]), normal(0, B, T, P, C), np.random.default_rng(0)
    lead, count = SIZES[module.along]
    mask = rng.random((B, lead, *([count] if pairs else []), count)) < 0.5
    mask[..., 0] = True  # a query without any source has no answer
    text = dict(text=normal(1, B, 1, L, E)) if module.context else {}
    for part in (mask, mask[:, :1], mask[:1]):
        found = run(module, x, mask=part, **text)
        np.testing.assert_allclose(found, reference(module, x, mask=part, **text), atol=1e-5)


@pytest.mark.parametrize("options", [dict(along="time"), JOINT, ONLY], ids=["time", "joint", "only"])
def test_one_matrix_computes_what_three_compute(options):
    apart, fused = make(**options), make(**options, fused=True)

    def side_by_side(*linears):
        kernels = [linear.kernel[...].reshape(-1, N, 1, C // N) for linear in linears]
        return jnp.concatenate(kernels, 2).reshape(kernels[0].shape[0], -1)

    if options is ONLY:
        fused.text_kv.kernel[...] = side_by_side(apart.k, apart.v)
        fused.q = apart.q
    else:
        fused.qkv.kernel[...] = side_by_side(apart.q, apart.k, apart.v)
    if options is JOINT:
        fused.text_kv = apart.text_kv
    fused.out = apart.out
    x, tokens = normal(0, B, T, P, C), None if "text_width" not in options else normal(1, B, 1, L, E)
    np.testing.assert_allclose(run(fused, x, tokens), run(apart, x, tokens), atol=1e-5)


def test_sizes_of_heads_follow_from_the_width_or_each_other():
    for options, expected in (
        (dict(heads=3), (3, 6)),
        (dict(head_size=3), (2, 6)),
        (dict(heads=3, head_size=5), (3, 15)),
    ):
        module = nnx.eval_shape(lambda options=options: Attention(C, **options, rngs=nnx.Rngs(0)))
        assert (module.heads, module.q.out_features) == expected
        assert module.out.out_features == C


def test_the_output_starts_at_zero_where_it_should():
    x = normal(0, B, T, P, C)
    assert not run(Attention(C, heads=N, zero=True, rngs=nnx.Rngs(0)), x).any()
    assert run(Attention(C, heads=N, rngs=nnx.Rngs(0)), x).all()


def test_a_relative_bias_has_float32_and_one_number_for_each_offset_and_head():
    options = dict(along="time", position="relative", max_distance=3, dtype="bfloat16")
    bias = Attention(C, heads=N, **options, rngs=nnx.Rngs(0)).bias
    assert (bias.shape, bias.dtype) == ((2 * 3 + 1, N), jnp.float32)
    assert 0.2 < float(bias[...].std()) < 0.8  # strong from the start, so that order is learned


def test_attention_over_all_tokens_asks_for_its_layout_and_back():
    calls = []

    class Recorded(type(ONE_DEVICE)):
        def heads(self, x, back=False):
            calls.append((x.shape, back))
            return x

    x = normal(0, B, T, P, C)
    for along, expected in (("all", [((B, T, P, N, C // N), back) for back in (False,) * 3 + (True,)]), ("space", [])):
        calls.clear()
        module = make(along=along)
        jax.eval_shape(lambda x, module=module: module(x, layout=Recorded()), x)
        assert calls == expected


# ---------------------------------------------------------------------------------------------- the kernel


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


def test_attention_along_time_never_takes_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [H100])
    for along, expected in (("space", "cudnn"), ("all", "cudnn"), ("time", "xla")):
        options = dict(head_size=64, along=along, implementation="auto", dtype="bfloat16")
        module = nnx.eval_shape(lambda options=options: Attention(64, **options, rngs=nnx.Rngs(0)))
        assert module.implementation == expected


@pytest.mark.parametrize(
    ("name", "dtype", "head_size", "device", "message"),
    [
        ("flash", "bfloat16", 64, H100, "attention='flash' must be one of auto, xla, cudnn"),
        ("cudnn", "float32", 64, H100, "dtype=float32 is not 16-bit"),
        ("cudnn", "bfloat16", 20, H100, "head_size=20 is not a multiple of 8"),
        ("cudnn", "bfloat16", 64, T4, "compute capability '7.5' is below 8.0"),
    ],
)
def test_implementation_that_cannot_run_is_an_error(name, dtype, head_size, device, message):
    with pytest.raises(InputError, match=message):
        choose_implementation(name, dtype=dtype, head_size=head_size, device=device)


def test_a_bias_is_added_to_the_scores_and_unscaled_scores_are_those_of_larger_queries():
    common = dict(head_size=D, out_bias=False)
    plain, unscaled = make(**common), make(scaled=False, **common)
    x, bias = normal(0, B, T, P, C), 100 * jnp.eye(P)[None].repeat(N, 0)  # each pixel sees itself alone
    assert plain.out.bias is None
    values = product(plain.out, product(plain.v, x))
    np.testing.assert_allclose(plain(x, bias=bias), values, atol=1e-5)
    expected = unscaled(x)
    assert not np.allclose(expected, plain(x), atol=1e-3)
    plain.q.kernel[...] = plain.q.kernel[...] * np.sqrt(D)
    np.testing.assert_allclose(expected, plain(x), atol=1e-5)
