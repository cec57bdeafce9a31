"""The buckets of relative positions in T5's attention."""

import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.t5 import T5, relative_buckets


def test_near_distances_have_a_bucket_each_and_far_ones_share():
    after = relative_buckets(200, 32, 128)[0]  # from the first token to the tokens after it
    starts = [int(np.flatnonzero(after == bucket)[0]) for bucket in range(17, 32)]
    assert starts == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]  # as published
    assert (after[91:] == 31).all()
    before = relative_buckets(200, 32, 128)[:, 0]
    assert (before[1:] == after[1:] - 16).all()
    assert before[0] == 0


def test_buckets_depend_on_the_distance_alone():
    buckets = relative_buckets(9, 8, 5)
    assert (buckets[1:, 1:] == buckets[:-1, :-1]).all()


def test_buckets_that_cannot_be_made_are_refused():
    sizes = dict(vocabulary=5, width=4, middle=4, depth=1, heads=1, head_size=4, epsilon=1e-6, shared=True)
    with pytest.raises(InputError, match="buckets=32 must be a multiple of 4, below 4 × max_distance=8"):
        T5(**sizes, buckets=32, max_distance=8, rngs=Keys(0))
