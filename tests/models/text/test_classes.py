"""A class table: texts are classes, and the empty text is a class of its own."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.text.classes import ClassTable

NAMES = ("0|zero", "1|one", "Apply Make-up", "Apply")


@pytest.fixture
def table():
    return ClassTable(width=6, names=NAMES, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("text", "number"),
    [("zero", 0), ("the digit 1 moves left", 1), (" apply  MAKE-UP ", 2), ("apply", 3), ("", 4), (" ", 4)],
)
def test_a_text_is_the_class_that_it_names(table, text, number):
    assert table.tokenize(text).tolist() == [number]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two", "text='two' names no class of 0|zero, 1|one, Apply Make-up, Apply"),
        ("a 0 and a one", "names 2 classes"),
        ("the digit 10", "names no class"),
    ],
)
def test_other_texts_are_refused(table, text, line):
    with pytest.raises(InputError) as error:
        table.tokenize(text)
    assert line in str(error.value)


def test_a_class_has_a_row_of_the_table(table):
    text = table(jnp.array([[[1], [4]]]))
    np.testing.assert_array_equal(text.tokens[0, :, 0], table.embed.embedding[...][jnp.array([1, 4])])
    np.testing.assert_array_equal(text.pooled[0], text.tokens[0, :, 0])
    assert text.mask.shape == (1, 2, 1)
    assert text.mask.all()
    with pytest.raises(InputError, match="text names=\\(\\) must hold"):
        ClassTable(width=6, names=(), rngs=nnx.Rngs(0))
