"""Moving digits: splits, motion, captions and the build."""

import dataclasses
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from vdm_jax.data import moving_digits as md
from vdm_jax.errors import InputError


def config(name, **changes):
    """Returns a published config with one clip per image."""
    full = next(c for c in md.MovingDigits.BUILDER_CONFIGS if c.name == name)
    return dataclasses.replace(full, name=f"tiny_{name}", train_clips=1, test_clips=1, **changes)


def records(builder, split, count=None):
    source = builder.as_data_source(split=split)
    rows = [source[i] for i in range(count or len(source))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("moving_digits")


@pytest.fixture(scope="module")
def builder(folder):
    return md.prepare(folder, config("16x8"))


def generated(name, count=256, split="test", **changes):
    """Returns the first records of the generator, unshuffled and without a build."""
    builder = md.MovingDigits(data_dir="/nonexistent", config=config(name, **changes))
    rows = [row for (_, row), _ in zip(builder._generate_examples(split), range(count), strict=False)]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def centroid(videos):
    """Returns the centroid (row, column) of every frame, computed independently of the package."""
    weight = videos[..., 0].astype(np.float64)
    total = weight.sum((2, 3))
    rows, columns = np.arange(weight.shape[2]), np.arange(weight.shape[3])
    return np.stack([(weight.sum(3) @ rows) / total, (weight.sum(2) @ columns) / total], -1)


def test_records_have_the_promised_shapes_and_images_do_not_cross_the_split(builder):
    train, test = records(builder, "train"), records(builder, "test")
    assert train["video"].shape == (1500, 8, 16, 16, 1)
    assert test["video"].shape == (297, 8, 16, 16, 1)
    assert train["video"].dtype == np.uint8
    assert 200 < train["video"].max() <= 255
    for name in ("digit", "direction", "speed", "image_id"):
        assert train[name].shape == (1500, 1)
    assert not set(train["image_id"].ravel()) & set(test["image_id"].ravel())
    assert set(np.bincount(test["digit"].ravel())) <= {28, 29, 30, 31}
    assert np.bincount(train["direction"].ravel()).tolist() == [375] * 4
    for text, digit, direction in zip(test["caption"], test["digit"], test["direction"], strict=True):
        assert md.parse_caption(text.decode()) == (tuple(digit), tuple(direction))


def test_two_builds_are_equal(builder, tmp_path):
    again = md.prepare(tmp_path, config("16x8"))
    first, second = records(builder, "test"), records(again, "test")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("name", ["16x8", "32x16"])
def test_motion_is_linear_along_the_named_axis_and_never_leaves_the_frame(name):
    clips = generated(name)
    brightness = clips["video"].sum((2, 3, 4), dtype=np.float64)
    np.testing.assert_allclose(brightness, np.broadcast_to(brightness[:, :1], brightness.shape), rtol=0.02)
    where = centroid(clips["video"])
    frames = where.shape[1]
    unit = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])[clips["direction"][:, 0]]
    expected = unit * clips["speed"] * (frames - 1)
    np.testing.assert_allclose(where[:, -1] - where[:, 0], expected, atol=0.05)
    np.testing.assert_allclose(np.diff(where, n=2, axis=1), 0, atol=0.05)
    assert np.abs(expected).max(1).min() > 3


def test_bouncing_digits_stay_inside_and_turn_around():
    clips = generated("bouncing")
    brightness = clips["video"].sum((2, 3, 4), dtype=np.float64)
    np.testing.assert_allclose(brightness, np.broadcast_to(brightness[:, :1], brightness.shape), rtol=0.02)
    assert set(clips["direction"].ravel()) == {4, 5}
    step = np.diff(centroid(clips["video"]), axis=1)
    axis = np.where(clips["direction"][:, 0] == md.MOTIONS.index("sideways"), 1, 0)
    along = np.take_along_axis(step, axis[:, None, None], 2)[..., 0]
    across = np.take_along_axis(step, 1 - axis[:, None, None], 2)[..., 0]
    assert (along.max(1) > 0.5).all()
    assert (along.min(1) < -0.5).all()
    np.testing.assert_allclose(across, 0, atol=0.05)


def test_two_digits_differ_and_show_apart():
    clips = generated("two_digits")
    assert clips["video"].shape[1:] == (8, 24, 24, 1)
    assert clips["digit"].shape == clips["direction"].shape == clips["speed"].shape == (256, 2)
    assert (clips["digit"][:, 0] != clips["digit"][:, 1]).all()
    assert set(clips["direction"][:, 1]) == {0, 1, 2, 3}
    single = generated("16x8")["video"].max((1, 2, 3, 4))  # the same images as the first digits
    assert (clips["video"].max((1, 2, 3, 4)) >= single - 40).all()
    for text, digits, directions in zip(clips["caption"], clips["digit"], clips["direction"], strict=True):
        assert md.parse_caption(str(text)) == (tuple(digits), tuple(directions))


def test_no_caption_is_longer_than_the_longest(builder):
    longest = md.longest_caption(config("16x8"))
    assert len(longest) == max(
        len(text) for digit in range(10) for way in range(4) for text in md.phrasings(digit, way)
    )
    assert max(map(len, records(builder, "train")["caption"])) <= len(longest)
    two = md.longest_caption(config("two_digits"))
    assert two == f"{longest} and {longest}"
    assert md.longest_caption(config("bouncing")).endswith("from side to side")


def test_every_phrasing_reads_back():
    for digit in range(10):
        for direction in range(len(md.MOTIONS)):
            options = md.phrasings(digit, direction)
            assert len(set(options)) == len(options) >= 40
            for text in options:
                assert md.parse_caption(text) == ((digit,), (direction,))
    rng = np.random.default_rng(0)
    for _ in range(200):
        digits, directions = rng.choice(10, 2), rng.choice(4, 2)
        assert md.parse_caption(md.caption(digits, directions, rng)) == (tuple(digits), tuple(directions))


def test_captions_that_people_type_read_too():
    assert md.parse_caption("  The Digit 3\nmoves LEFT. ") == ((3,), (0,))
    assert md.parse_caption("8 going  to the right, four up") == ((8, 4), (1, 2))


@pytest.mark.parametrize("text", ["", "a cat", "left", "the digit 3", "3 left right", "12 moves up", "moves left 3"])
def test_captions_that_name_no_digit_and_direction_are_refused(text):
    with pytest.raises(InputError, match="caption="):
        md.parse_caption(text)


def test_builds_once(builder, folder, caplog):
    with caplog.at_level(logging.INFO):
        again = md.prepare(folder, config("16x8"))
    assert not [record for record in caplog.records if record.name == md.__name__]
    assert again.info.splits["train"].num_examples == 1500


def test_a_build_that_stops_half_way_is_done_again(tmp_path, monkeypatch):
    original = md.MovingDigits._generate_examples

    def stop_half_way(self, split):
        for i, row in original(self, split):
            if i == 100:
                raise KeyboardInterrupt
            yield i, row

    monkeypatch.setattr(md.MovingDigits, "_generate_examples", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        md.prepare(tmp_path, config("16x8"))
    monkeypatch.undo()
    assert len(md.prepare(tmp_path, config("16x8")).as_data_source(split="test")) == 297


@pytest.mark.parametrize("damage", ["truncate", "remove", "no_info"])
def test_a_damaged_build_is_done_again(tmp_path, damage, caplog):
    builder = md.prepare(tmp_path, config("16x8"))
    file = next(builder.data_path.glob("*test*array_record*"))
    if damage == "truncate":
        os.truncate(file, os.path.getsize(file) // 2)
    elif damage == "remove":
        file.unlink()
    else:
        (builder.data_path / "dataset_info.json").unlink()
    again = md.prepare(tmp_path, config("16x8"))
    assert "building it again" in caplog.text
    assert len(records(again, "test")["video"]) == 297


def test_feeds_grain(builder):
    import grain

    source = builder.as_data_source(split="train")
    batches = grain.MapDataset.source(source).seed(0).shuffle().batch(16, drop_remainder=True)
    batch = batches[0]
    assert batch["video"].shape == (16, 8, 16, 16, 1)
    assert batch["digit"].shape == (16, 1)


def test_bad_input_names_itself(tmp_path):
    with pytest.raises(InputError, match="config='17x8' must be one of 16x8, 32x8, 32x16, two_digits, bouncing"):
        md.prepare(tmp_path, "17x8")
    with pytest.raises(InputError, match="speed="):
        config("16x8", speed=(1.0, 2.0))
    with pytest.raises(InputError, match="speed="):
        config("bouncing", speed=(0.5, 2.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data_dir=.* cannot be written"):
        md.prepare(tmp_path / "file", config("16x8"))


def test_imports_neither_tensorflow_nor_jax():
    code = "import sys, vdm_jax.data.moving_digits; print({'tensorflow', 'jax', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
