"""Real clips: which split is held out, how clips are divided without one, and the judge of moving digits."""

import numpy as np

from vdm_jax.config import default_config
from vdm_jax.evaluation import judge as ev
from vdm_jax.evaluation import reference as reference_clips
from vdm_jax.evaluation.reference import other_data, read_clips, real_data
from vdm_jax.video import write_video


def write_videos(folder, count):
    noise = np.random.default_rng(count).integers(256, size=(count, 4, 8, 8, 3)).astype(np.uint8)
    for number, video in enumerate(noise):
        write_video(folder / f"{number}.gif", video, 8)
        (folder / f"{number}.txt").write_text(f"{folder.name} {number}")


def test_held_out_clips_are_those_of_a_held_out_split(tmp_path):
    for split, count in (("train", 5), ("valid", 4), ("other", 2)):
        write_videos(tmp_path / split, count)
    found = other_data(str(tmp_path), (4, 8, 8, 3), data_dir="none", fps=8.0)
    assert (len(found.held_out), len(found.reference)) == (4, 5)
    assert found.name == f"{tmp_path}, valid; reference train"
    assert {caption.split()[0] for caption in read_clips(found, 3).captions} == {"valid"}
    assert {caption.split()[0] for caption in read_clips(found, 3, which="reference").captions} == {"train"}


def test_a_split_that_was_trained_on_is_not_held_out(monkeypatch):
    monkeypatch.setattr(reference_clips, "make_source", lambda name, split, **how: [{"split": split}])
    monkeypatch.setattr(reference_clips, "splits_of", lambda *place, **how: ["train", "test", "validation"])
    for split, held_out in {"train": "test", "train+test": "validation", "train+test[:50%]": "validation"}.items():
        found = reference_clips._real_data("ucf101", data_dir="x", split=split)
        assert [found.held_out[0]["split"], found.reference[0]["split"]] == [held_out, split]


def test_without_such_a_split_clips_are_divided_and_the_name_says_so(tmp_path):
    write_videos(tmp_path, 5)
    write_videos(tmp_path / "test", 1)  # without train/, all videos are the training split
    config = default_config()
    config.data.update(name="folder", data_dir=str(tmp_path), frames=4, height=8, width=8, channels=3)
    found = real_data(config)
    assert found.name == f"{tmp_path}, train; reference other clips of it: nothing is held out"
    assert found.held_out is found.reference
    halves = [read_clips(found, 3, 7, which) for which in ("held-out", "reference")]
    assert len(set(halves[0].captions + halves[1].captions)) == 6
    assert halves[0].videos.shape == (3, 4, 8, 8, 3)
    assert read_clips(found, 3, 7) is halves[0]  # read once


def test_moving_digits_come_with_their_judge(tmp_path, monkeypatch):
    config = default_config()
    config.data.data_dir = str(tmp_path)
    asked = []
    monkeypatch.setattr(ev, "load_or_train_judge", lambda path, builder: asked.append((path.name, builder)))
    found = real_data(config)
    assert (len(found.held_out), len(found.reference)) == (4 * 297, 8 * 1500)
    found.judge()
    assert [(name, builder.builder_config.name) for name, builder in asked] == [("judge-16x8.npz", "16x8")]
    read = read_clips(found, 4, seed=5)
    rows = asked[0][1].as_data_source(split="test")
    for i, row in enumerate(np.random.default_rng(5).permutation(4 * 297)[:4]):
        np.testing.assert_array_equal(read.videos[i], rows[int(row)]["video"])
        assert read.captions[i] == rows[int(row)]["caption"].decode()
