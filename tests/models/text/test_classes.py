"""The table of classes: which class a text holds, and the vectors of classes and of none."""

import jax
import numpy as np
import pytest

from vdm_jax.config import read_file
from vdm_jax.data.moving_digits import DIRECTIONS, phrasings
from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.classes import ClassTable


def table(*classes):
    return ClassTable(classes=classes, width=6, rngs=Keys(0))


def test_a_class_is_a_name_in_the_text_and_none_is_the_last_vector():
    classes = table("Basketball", "BasketballDunk", ("cat", "cats?|kitten"))
    texts = ["BasketballDunk", "basketball", "two CATS play", "", "  "]
    tokens = np.stack([classes.tokenize(text) for text in texts])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[1], [0], [2], [3], [3]]
    text = jax.jit(classes.__call__)(tokens[:, None])
    rows = classes.embed.embedding[...]
    assert rows.shape == (4, 6)
    np.testing.assert_array_equal(text.pooled[:, 0], rows[tokens[:, 0]])
    np.testing.assert_array_equal(text.tokens[:, 0, 0], rows[tokens[:, 0]])
    assert text.tokens.shape == (5, 1, 1, 6)
    assert text.mask.shape == (5, 1, 1)
    assert text.mask.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a dog", "text 'a dog' must be empty or hold one of the 3 classes cat, bird, fish; it holds none"),
        ("cats", "it holds none"),
        ("a cat and a bird", "it holds cat, bird"),
    ],
)
def test_a_text_of_no_class_or_of_several_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        table("cat", "bird", "fish").tokenize(text)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "at least one class"),
        ((("a", "("),), "names, or pairs of name and expression: missing \\), unterminated"),
        ((("a", "b", "c"), "d"), "names, or pairs of name and expression: "),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(InputError, match=message):
        table(*classes)


def test_every_caption_of_moving_digits_is_of_its_class():
    group = read_file("configs/latte.py:moving_digits_class").model.text.to_dict()
    classes = ClassTable(**{key: value for key, value in group.items() if key != "kind"}, rngs=Keys(0))
    assert len(classes.classes) == 40
    for digit in range(10):
        for direction in range(len(DIRECTIONS)):
            found = {classes.tokenize(text).item() for text in phrasings(digit, direction)}
            assert found == {4 * digit + direction}


def test_every_class_of_ucf101_is_its_name():
    group = read_file("configs/latte.py:ucf101").model.text
    assert len(group.classes) == len(set(group.classes)) == 101
    classes = table(*group.classes)
    assert [classes.tokenize(name).item() for name in group.classes] == list(range(101))
