"""Byte tokens and their encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.text.bytes import ByteEncoder, _rows, hash_ngrams, tokenize_bytes

LENGTH = 8


@pytest.fixture(scope="module")
def encode():
    encoder = ByteEncoder(width=16, depth=1, length=LENGTH, head_size=8, rngs=nnx.Rngs(0))
    return jax.jit(encoder.__call__)


def test_tokens_are_a_start_token_the_bytes_plus_one_and_padding():
    np.testing.assert_array_equal(tokenize_bytes("aé", 6), [257, 98, 0xC3 + 1, 0xA9 + 1, 0, 0])
    assert tokenize_bytes("", 3).tolist() == [257, 0, 0]
    assert tokenize_bytes("\0", 3).tolist() == [257, 1, 0]  # a null byte is not padding
    assert tokenize_bytes("abc", 4).dtype == np.int32


def test_a_text_that_does_not_fit_is_an_error():
    assert tokenize_bytes("abc", 4).all()
    with pytest.raises(InputError, match="text of 4 bytes must have at most 3: 'éé'"):
        tokenize_bytes("éé", 4)
    with pytest.raises(InputError, match="is not Unicode: surrogates not allowed"):
        tokenize_bytes("\ud83d", 4)


def test_an_ngram_has_one_bucket_wherever_it_stands_and_another_in_another_order():
    texts = [list(tokenize_bytes(t, 12)) for t in ("a seven", "seven is", "neves is")]
    first, second, reversed_ = np.asarray(hash_ngrams(jnp.asarray(texts), 3, 1 << 20))
    np.testing.assert_array_equal(first[5:8], second[3:6])  # "sev" "eve" "ven"
    assert len(set(second[3:6]) | set(reversed_[3:6])) == 5  # "eve" is in both


def test_hashed_ngrams_fill_their_buckets_evenly():
    letters = np.stack(np.meshgrid(*[np.arange(97, 123)] * 3), -1).reshape(1, -1)  # all triples, one after another
    count = np.bincount(np.asarray(hash_ngrams(jnp.asarray(letters), 3, 64))[0], minlength=64)
    assert count.shape == (64,)
    assert 0.7 * count.mean() < count.min() <= count.max() < 1.4 * count.mean()


@pytest.mark.parametrize("options", [{"ngrams": (1,)}, {"buckets": 0}])
def test_an_ngram_has_at_least_two_bytes_and_a_bucket(options):
    with pytest.raises(InputError, match="ngrams="):
        ByteEncoder(width=16, depth=0, length=LENGTH, head_size=8, rngs=nnx.Rngs(0), **options)


def test_padding_has_no_influence(encode):
    tokens = jnp.asarray(tokenize_bytes("abc", LENGTH))[None]
    short, padded = encode(tokens[:, :4]), encode(tokens)
    np.testing.assert_array_equal(padded.mask[0], [True] * 4 + [False] * 4)
    np.testing.assert_allclose(padded.tokens[:, :4], short.tokens, atol=1e-5)
    np.testing.assert_allclose(padded.pooled, short.pooled, atol=1e-5)


def test_a_table_learns_nothing_from_padding():
    graphdef, params = nnx.split(nnx.Embed(6, 4, rngs=nnx.Rngs(0)))
    index, mask = jnp.array([[2, 5, 2, 0, 0]]), jnp.array([[True, True, True, False, False]])
    seen = _rows(nnx.merge(graphdef, params), index, mask)
    np.testing.assert_array_equal(seen[0, :3], params.embedding[...][index[0, :3]])
    np.testing.assert_array_equal(seen[0, 3:], 0)
    learnt = jax.grad(lambda params: _rows(nnx.merge(graphdef, params), index, mask).sum())(params)
    np.testing.assert_array_equal(learnt.embedding[...][:, 0], [0, 0, 2, 0, 0, 1])


def test_the_empty_text_is_one_token_and_its_own_pooled_vector(encode):
    out = encode(jnp.asarray(tokenize_bytes("", LENGTH))[None])
    assert out.mask.sum() == 1
    np.testing.assert_allclose(out.pooled[0], out.tokens[0, 0], atol=1e-6)


def test_pooled_is_the_sum_of_the_real_tokens_over_the_root_of_their_number(encode):
    out = encode(jnp.asarray(tokenize_bytes("abc", LENGTH))[None])
    np.testing.assert_allclose(out.pooled[0], out.tokens[0, :4].sum(0) / 2, atol=1e-5)


def test_texts_are_encoded_one_by_one_whatever_the_leading_axes(encode):
    tokens = jnp.asarray(np.stack([tokenize_bytes(t, LENGTH) for t in ("left", "felt", "", "up")]))
    flat, nested = encode(tokens), encode(tokens.reshape(2, 2, LENGTH))
    for a, b in zip(flat, nested, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-5)
    assert np.abs(flat.pooled[0] - flat.pooled[1]).max() > 1e-3  # the order of bytes is known


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (20, "text width=20 must be a multiple of its head_size=8"),
        (9, "text width=9 must be even: half of the code of positions are sines"),
    ],
)
def test_a_width_that_does_not_divide_is_an_error(width, message):
    with pytest.raises(InputError, match=message):
        ByteEncoder(width=width, depth=1, length=LENGTH, head_size=8, rngs=nnx.Rngs(0))


def test_a_module_tokenizes_to_its_length():
    encoder = nnx.eval_shape(lambda: ByteEncoder(width=8, depth=0, length=LENGTH, head_size=8, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(encoder.tokenize("abc"), tokenize_bytes("abc", LENGTH))
