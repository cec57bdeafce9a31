"""Data by name: each source opens, cuts clips and feeds worker processes, or says clearly why it cannot."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vdm_jax.data.pipeline import make_iterator
from vdm_jax.data.source import make_source, splits_of
from vdm_jax.errors import InputError
from vdm_jax.video import write_video

COUNT, FRAMES = 6, 9


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


class StoredVideos(tfds.core.GeneratorBasedBuilder):
    """Builds videos whose frames have the colour (10·i, 20·t, 0), in the layouts of TFDS' own data sets."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # without downloads; TFDS would look for their checksums
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small", version="1.0.0")]  # noqa: RUF012 - TFDS' interface

    def _info(self):
        picture = tfds.features.Image(shape=(8, 12, 3))
        features = {
            "video": tfds.features.Sequence(picture),
            "label": tfds.features.ClassLabel(names=["Apply Lipstick", "Archery"]),
            "caption": tfds.features.Text(),
            "robot": tfds.features.Sequence({"image_aux1": picture, "action": np.float32}),
            "grey": tfds.features.Tensor(shape=(FRAMES, 4, 4, 1), dtype=np.uint8),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            colours = np.array([(10 * i, 20 * t, 0) for t in range(FRAMES)], np.uint8)
            frames = [png(np.broadcast_to(colour, (8, 12, 3))) for colour in colours]
            yield (
                i,
                {
                    "video": frames,
                    "label": i % 2,
                    "caption": f"video {i}",
                    "robot": {"image_aux1": frames, "action": np.zeros(FRAMES, np.float32)},
                    "grey": np.full((FRAMES, 4, 4, 1), i, np.uint8),
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepares a data set and declares its "video" as TFDS' `Video`, which only TensorFlow can write."""
    data_dir = tmp_path_factory.mktemp("tfds")
    for folder in ("array_record", "tfrecord"):
        builder = StoredVideos(config="small", data_dir=str(data_dir / folder), file_format="array_record")
        builder.download_and_prepare()
    description = Path(builder.data_dir) / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    path = data_dir / "array_record" / "stored_videos" / "small" / "1.0.0" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "8", "12", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    path.write_text(json.dumps(features))
    return data_dir


def open_prepared(prepared, **options):
    options = {"builder_config": "small", "data_dir": prepared / "array_record"} | options
    return make_source(options.pop("name", "tfds:stored_videos"), **options)


def colours(video):
    return video.mean(axis=(1, 2)).round().astype(int).tolist()


def test_tfds_videos_are_read_without_tensorflow(prepared):
    source = open_prepared(prepared)
    assert len(source) == COUNT
    assert source[0]["video"].shape == (FRAMES, 8, 12, 3)
    assert source[0]["video"].dtype == np.uint8
    for item in source:
        assert colours(item["video"]) == [[10 * int(item["caption"][-1]), 20 * t, 0] for t in range(FRAMES)]
    assert not any(name == "tensorflow" or name.startswith("tensorflow.") for name in sys.modules)


def test_tfds_clips_are_cut_and_resized(prepared):
    source = open_prepared(prepared, frames=3, stride=2, size=(4, 4), split="train[:50%]", crop="center")
    assert len(source) == COUNT // 2
    video = source[0]["video"]
    assert video.shape == (3, 4, 4, 3)
    assert [green for _, green, _ in colours(video)] == [40, 80, 120]
    drawn = open_prepared(prepared, frames=3)
    rng = np.random.default_rng(0)
    starts = {colours(drawn.sample(0, rng)["video"])[0][1] // 20 for _ in range(60)}
    assert starts == set(range(FRAMES - 2))
    assert drawn.sample(0, rng, single_frame=True)["video"].shape == (1, 8, 12, 3)
    np.testing.assert_array_equal(drawn[1]["video"], drawn[1]["video"])


def test_tfds_features_by_name(prepared):
    nested = open_prepared(prepared, video_key="robot/image_aux1", caption_key="label")
    assert nested[0]["video"].shape == (FRAMES, 8, 12, 3)
    assert {item["caption"] for item in nested} == {"Apply Lipstick", "Archery"}
    grey = open_prepared(prepared, name="stored_videos", video_key="grey", frames=2, size=2)
    assert [item["video"].shape for item in grey] == [(2, 2, 2, 1)] * COUNT
    assert sorted(int(item["caption"][-1]) for item in grey) == list(range(COUNT))


def test_tfds_feeds_worker_processes(prepared):
    source = open_prepared(prepared, frames=4, size=8)
    options = {
        "batch_size": 3,
        "seed": 0,
        "tokenize": lambda text: np.array([int(text[-1])]),
        "joint_images": 1,
    }
    here, there = make_iterator(source, **options), make_iterator(source, num_workers=1, **options)
    for _ in range(3):
        a, b = next(here), next(there)
        assert a["video"].shape == (3, 5, 8, 8, 3)
        np.testing.assert_array_equal(a["video"], b["video"])
        np.testing.assert_array_equal(a["video"][:, 0, 0, 0, 0], 10 * a["tokens"][:, 0])
        np.testing.assert_array_equal(a["video"][:, 4, 0, 0, 0], 10 * a["image_tokens"][:, 0, 0])
    here.close(), there.close()


def test_folder_with_and_without_splits(tmp_path):
    def write(path):
        path.parent.mkdir(exist_ok=True)
        write_video(path, np.zeros((6, 8, 8, 1), np.uint8), 8)

    options = {"data_dir": tmp_path, "frames": 4, "size": 8}
    write(tmp_path / "a.mp4")
    assert len(make_source("folder", **options)) == 1
    with pytest.raises(InputError, match=r"split='test' of a folder needs the folder .*test"):
        make_source("folder", split="test", **options)
    for name in ("train/b.mp4", "train/c.mp4", "test/d.mp4"):
        write(tmp_path / name)
    assert len(make_source("folder", **options)) == 2
    assert len(make_source("folder", split="test", fps=4, **(options | {"frames": 2}))) == 1


def test_folders_of_splits_may_have_capitals_and_what_lies_beside_them_is_named(tmp_path, caplog):
    for name in ("Train/a.mp4", "TEST/b.mp4", "beside.mp4"):
        write_video(tmp_path / name, np.zeros((4, 16, 16, 3), np.uint8), 8)
    (tmp_path / "metadata.csv").write_text("file_name,text\nTrain/a.mp4,a\n")
    options = {"data_dir": tmp_path, "frames": 2, "size": 16}
    train, test = (make_source("folder", split=split, **options) for split in ("train", "test"))
    assert (train.root.name, test.root.name) == ("Train", "TEST")
    assert splits_of("folder", data_dir=tmp_path) == ["test", "train"]
    assert "only Train/ is read; left out beside it: beside.mp4, metadata.csv" in caplog.text
    (tmp_path / "train").mkdir()  # the exact name comes first
    write_video(tmp_path / "train" / "c.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    assert make_source("folder", **options).root.name == "train"
    assert splits_of("folder", data_dir=tmp_path) == ["test", "train"]


def test_splits_are_named(prepared, tmp_path):
    place = {"data_dir": prepared / "array_record", "builder_config": "small"}
    assert splits_of("tfds:stored_videos", **place) == ["train", "test"]
    assert splits_of("moving_digits", data_dir=tmp_path) == ["train", "test"]
    (tmp_path / "test").mkdir()
    assert splits_of("folder", data_dir=tmp_path) == ["train"]  # test/ is a part of it
    (tmp_path / "train").mkdir()
    assert splits_of("folder", data_dir=tmp_path) == ["test", "train"]
    with pytest.raises(InputError, match="is not prepared in"):
        splits_of("ucf101", data_dir=tmp_path)


def test_moving_digits(tmp_path):
    from vdm_jax.data import moving_digits

    name = moving_digits.MovingDigits.BUILDER_CONFIGS[0].name
    source = make_source("moving_digits", data_dir=tmp_path, builder_config=name, split="test")
    frames, height, width, channels = source[0]["video"].shape
    assert channels == 1
    assert moving_digits.parse_caption(source[0]["caption"])
    clip = {"frames": frames // 2, "size": height // 2}
    short = make_source("moving_digits", data_dir=tmp_path, builder_config=name, split="test", **clip)
    assert short[0]["video"].shape == (frames // 2, height // 2, width // 2, 1)


def test_bad_input(prepared, tmp_path):
    elsewhere = {"data_dir": tmp_path}
    cases = [
        (lambda: open_prepared(prepared, **elsewhere), f"stored_videos/small is not prepared in {tmp_path}"),
        (
            lambda: make_source("ucf101", **elsewhere),
            "tfds build ucf101 --data_dir=.* --file_format=array_record",
        ),
        (lambda: open_prepared(prepared, name="not a name"), "is not prepared in"),
        (lambda: open_prepared(prepared, builder_config="large"), "stored_videos/large is not prepared"),
        (
            lambda: open_prepared(prepared, split="dev"),
            "split='dev' of stored_videos/small/1.0.0 must be",
        ),
        (
            lambda: open_prepared(prepared, video_key="film"),
            "video_key=film must be one of its features: caption",
        ),
        (lambda: open_prepared(prepared, video_key="caption"), "video_key=caption holds no frames of pixels"),
        (lambda: open_prepared(prepared, video_key="label"), "video_key=label holds no frames of pixels"),
        (lambda: open_prepared(prepared, video_key="robot/action"), "video_key=robot/action holds no frames of"),
        (lambda: open_prepared(prepared, caption_key="title"), "caption_key=title must be one of"),
        (lambda: open_prepared(prepared, frames=10)[0], "has 9 frames: too short for 10"),
        (lambda: open_prepared(prepared, fps=8), "fps=8: stored_videos stores no frame rates"),
        (lambda: open_prepared(prepared, stride=2), "stride=2 needs frames"),
        (lambda: open_prepared(prepared, data_dir=prepared / "tfrecord"), "is stored as tfrecord"),
        (lambda: open_prepared(prepared, captions="all"), "captions='all' is for a folder of videos"),
        (lambda: make_source("folder", **elsewhere), "needs frames and size"),
        (lambda: make_source("folder", frames=2, size=8, data_dir=tmp_path / "x"), "x is not a folder"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
