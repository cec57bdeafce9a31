"""Position codes: their formulas, and what depends on offsets alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal
from vdm_jax.models.positions import (
    axis_angles,
    frame_angles,
    frame_code,
    grid_code,
    interleaved_code,
    plane_code,
    relative_positions,
    rotate,
    sinusoid,
)

T, N, D = 3, 2, 8


def test_sinusoid_is_cosines_then_sines():
    out = sinusoid(jnp.array([0.0, 3.0]), 8)
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(out[0], [1] * 4 + [0] * 4)
    np.testing.assert_allclose(out[1], np.r_[np.cos(3 * frequencies), np.sin(3 * frequencies)], rtol=1e-5)


def test_frame_code_is_the_sinusoid_of_each_frames_number():
    np.testing.assert_array_equal(frame_code(5, 8), sinusoid(jnp.arange(5.0), 8))


def test_interleaved_code_has_sines_and_cosines_in_turns():
    code = frame_code(5, 8)
    out = interleaved_code(5, 8)
    np.testing.assert_array_equal(out[:, 0::2], code[:, 4:])
    np.testing.assert_array_equal(out[:, 1::2], code[:, :4])


def test_grid_code_is_the_code_of_the_row_then_of_the_column():
    out = grid_code(3, 5, 8)
    assert out.shape == (3, 5, 8)
    np.testing.assert_allclose(out[2, 3, :4], sinusoid(jnp.array(2.0), 4), rtol=1e-6)
    np.testing.assert_allclose(out[2, 3, 4:], sinusoid(jnp.array(3.0), 4), rtol=1e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_rotary_scores_depend_only_on_offsets_and_keep_lengths(paired):
    same = jnp.broadcast_to(normal(0, N, D), (1, T, 1, N, D))
    other = jnp.broadcast_to(normal(1, N, D), (1, T, 1, N, D))

    def scores(start):
        angles = frame_angles(start + T, D)[start:]
        return jnp.einsum("btpnd,bspnd->nts", rotate(same, angles, paired), rotate(other, angles, paired))

    at_zero = np.asarray(scores(0))
    np.testing.assert_allclose(scores(40), at_zero, atol=1e-4)
    for offset in (-1, 0, 1):
        diagonal = at_zero.diagonal(offset, 1, 2)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5)
    assert np.abs(at_zero[:, 0, 1] - at_zero[:, 1, 0]).max() > 0.1  # forward is not backward
    rotated = rotate(same, frame_angles(T, D), paired)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(same, axis=-1), rtol=1e-5)


def test_pairs_of_channels_are_neighbours_or_half_a_head_apart():
    x, angles = normal(0, 1, T, 1, N, D), frame_angles(T, D)
    order = np.arange(D).reshape(2, -1).T.ravel()  # 0 4 1 5 …
    np.testing.assert_allclose(rotate(x, angles)[..., order], rotate(x[..., order], angles, True), atol=1e-6)


def test_the_code_of_a_plane_has_columns_first_and_stretches():
    code = plane_code(3, 5, 8)
    np.testing.assert_allclose(code[2, 3, :4], np.sin([3, 0.03]).tolist() + np.cos([3, 0.03]).tolist(), atol=1e-7)
    np.testing.assert_allclose(code[2, 3, 4:], np.sin([2, 0.02]).tolist() + np.cos([2, 0.02]).tolist(), atol=1e-7)
    stretched = plane_code(2, 4, 8, (4.0, 8.0))  # every position twice as far
    np.testing.assert_array_equal(stretched, plane_code(4, 8, 8)[::2, ::2])


def test_angles_of_three_axes_belong_to_frame_row_and_column():
    angles = np.asarray(axis_angles(2, 3, 5, (4, 2, 2)))
    assert angles.shape == (2, 15, 1, 4)
    np.testing.assert_allclose(angles[1, 2 * 5 + 3, 0], [1, 0.01, 2, 3], rtol=1e-6)


def test_relative_positions_index_clipped_offsets():
    # Row: the query's frame; column: the source's frame. Index 2 is the frame itself.
    np.testing.assert_array_equal(relative_positions(4, 2), [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]])
