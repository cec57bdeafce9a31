"""Captions: lists with faults, two captions of a video, names of other systems, files that are not read."""

import json
import unicodedata

import numpy as np
import pytest

from vdm_jax.data.captions import read_captions
from vdm_jax.data.folder import VideoFolder
from vdm_jax.data.pipeline import make_iterator
from vdm_jax.errors import InputError
from vdm_jax.video import write_video

THREE = {"a.mp4": "a dog", "b.mp4": "b dog", "c.mp4": "c dog"}


@pytest.fixture
def folder(tmp_path):
    """A folder of three empty files that are named like videos."""
    for name in THREE:
        (tmp_path / name).touch()
    return tmp_path


def captions_of(root, several="one"):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    captions = read_captions(files, [path for path in files if path.suffix == ".mp4"], several)
    return {path.relative_to(root).as_posix(): texts for path, texts in captions.items()}


def metadata(root, text, name="metadata.csv"):
    (root / name).write_text(text, encoding="utf-8")
    return root


ROWS = "a.mp4,a dog\nb.mp4,b dog\nc.mp4,c dog\n"


@pytest.mark.parametrize(
    "text",
    [
        "file_name,text\n" + ROWS,
        '\ufefffile_name, text\r\na.mp4, "a dog"\r\nb.mp4, b dog\r\nc.mp4, c dog\r\n',
        "File_Name,Text\n\n" + ROWS + "   \n,\n",
        "file_name;text\n" + ROWS.replace(",", ";"),
        "file_name\ttext\n" + ROWS.replace(",", "\t"),
        "video_file_name,caption,\n" + ROWS.replace("\n", ",\n"),
    ],
    ids=["plain", "spaces", "capitals", "semicolon", "tab", "other names"],
)
def test_forms_of_csv(folder, text):
    assert captions_of(metadata(folder, text)) == {name: (caption,) for name, caption in THREE.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\na.mp4,a dog, running\n", 'line 2 has 3 fields, and the header 2: a text with .* needs'),
        ("file_name,text,fps\na.mp4,a,30\nb.mp4,a dog, fast, far,30\n", "line 3 has 5 fields, and the header 3"),
        ('file_name,text\na.mp4,"a\nb"\nb.mp4,"b dog\nc.mp4,c dog\n', r"line 4 is not CSV \(unexpected end of data"),
        ('file_name,text\na.mp4,"a dog\nb.mp4,"b dog"\n', r"line 2 is not CSV \(',' expected after '\"'\)"),
        ("file_name,text\n\na.mp4\n", "line 3: needs text in file_name and in text, and has it in 'file_name'"),
        ("path,text\na.mp4,a\n", "line 2: .* has it in 'path', 'text'"),
        ("file_name|text\na.mp4|a\n", r"line 2: .* has it in 'file_name\|text'"),
        ("file_name,text\na.mp4,a\nb.mp4,b\nd.mp4,d\n", "captions for 1 files that are no videos here: d.mp4"),
    ],
)  # fmt: skip
def test_faults_of_csv_are_named_with_their_line(folder, text, message):
    with pytest.raises(InputError, match=message) as error:
        captions_of(metadata(folder, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"file_name": "a.mp4", "text": "a"}]', "is one JSON array; it must have one object on each line"),
        ('[\n {"file_name": "a.mp4"},\n]', "is one JSON array"),
        ('{\n "file_name": "a.mp4"}', "line 1 is not JSON"),
        ('{"file_name": "a.mp4", "text": null}', "line 1: needs text .* has it in 'file_name'"),
        ('{"file_name": "a.mp4", "text": "a"}\n"b.mp4"', "line 2: needs text .* has it in no column"),
        ('{"a_file_name": "a.mp4", "b_file_name": "b.mp4", "text": "a"}', "'a_file_name', 'b_file_name', 'text'"),
    ],
)
def test_faults_of_jsonl_are_named(folder, text, message):
    with pytest.raises(InputError, match=message):
        captions_of(metadata(folder, text, "metadata.jsonl"))


def test_each_folder_may_have_a_list_of_its_own_and_parquet_is_one(folder):
    from pyarrow import Table, parquet

    for name in ("one/d.mp4", "two/deep/e.mp4", "two/f.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    metadata(folder, "file_name,text\na.mp4,a\none/d.mp4,d\n")
    parquet.write_table(
        Table.from_pylist([{"file_name": "deep/e.mp4", "text": "e"}, {"file_name": "f.mp4", "text": "f"}]),
        folder / "two" / "metadata.parquet",
    )
    (folder / "b.txt").write_text("b\n")
    expected = {"a.mp4": "a", "b.mp4": "b", "one/d.mp4": "d", "two/deep/e.mp4": "e", "two/f.mp4": "f"}
    assert captions_of(folder) == {name: (text,) for name, text in expected.items()}
    (folder / "two" / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"metadata\.parquet cannot be read as parquet \(") as error:
        captions_of(folder)
    assert "\n" not in str(error.value)


def test_a_text_file_beside_a_video_has_its_name_with_or_without_the_suffix(folder):
    (folder / "a.TXT").write_text("a")
    (folder / "b.mp4.txt").write_text("b")
    (folder / "c.txt").write_text("c")
    assert captions_of(folder) == {"a.mp4": ("a",), "b.mp4": ("b",), "c.mp4": ("c",)}


def test_what_is_not_read_is_named_where_videos_have_no_caption(folder, caplog):
    for name in ("a.txt", "captions.csv", "metadata.json", "prompts.txt", "videos.txt", "notes.pdf"):
        (folder / name).touch()
    assert captions_of(folder) == {"a.mp4": ("",)}
    assert "2 of 3 videos have no caption (now empty); not read as captions: captions.csv, meta" in caplog.text
    assert "prompts.txt …" in caplog.text


def test_names_are_compared_composed_and_paths_may_be_of_windows_or_absolute(tmp_path):
    names = [unicodedata.normalize(form, f"été {form}.mp4") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).touch()
        other = unicodedata.normalize("NFC" if "NFD" in name else "NFD", name)
        assert other != name
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": other, "text": name}) + "\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").touch()
    (tmp_path / "sub" / "b.mp4").touch()
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "sub\\a.mp4", "text": "a"}) + "\n")
        file.write(json.dumps({"file_name": str(tmp_path / "sub" / "b.mp4"), "text": "b"}) + "\n")
    expected = {name: (name,) for name in names} | {"sub/a.mp4": ("a",), "sub/b.mp4": ("b",)}
    assert captions_of(tmp_path) == expected


def test_an_absolute_path_is_found_below_a_relative_folder(folder, monkeypatch):
    metadata(folder, f"file_name,text\n{folder / 'a.mp4'},a\n./b.mp4,b\nx/../c.mp4,c\n")
    monkeypatch.chdir(folder.parent)
    assert captions_of(type(folder)(folder.name)) == {"a.mp4": ("a",), "b.mp4": ("b",), "c.mp4": ("c",)}


TWICE = "file_name,text\na.mp4,first\na.mp4,second\nb.mp4,b\nc.mp4,c\na.mp4,first\n"


def test_two_captions_of_a_video_are_an_error_or_a_choice(folder):
    metadata(folder, TWICE)
    with pytest.raises(InputError, match=r"line 3: a\.mp4 has a second caption; data\.captions='first' takes"):
        captions_of(folder)
    assert captions_of(folder, "first")["a.mp4"] == ("first",)
    assert captions_of(folder, "all") == {"a.mp4": ("first", "second"), "b.mp4": ("b",), "c.mp4": ("c",)}
    with pytest.raises(InputError, match=r"data\.captions='both' must be one, first or all"):
        captions_of(folder, "both")


def test_of_all_captions_a_sample_draws_one_and_resuming_draws_the_same(tmp_path):
    for name in THREE:
        write_video(tmp_path / name, np.zeros((4, 16, 16, 3), np.uint8), 8)
    metadata(tmp_path, TWICE)
    source = VideoFolder(tmp_path, frames=2, size=8, captions="all")
    assert {source.sample(0, np.random.default_rng(seed))["caption"] for seed in range(20)} == {"first", "second"}
    assert source[0]["caption"] == source[0]["caption"]
    assert source.longest_caption == (tmp_path / "a.mp4", "second")

    def batches(start, count):
        iterator = make_iterator(source, batch_size=3, seed=1, tokenize=lambda text: np.array([len(text)]))
        iterator.set_state({"next_batch": start})
        drawn = [next(iterator)["tokens"].tolist() for _ in range(count)]
        iterator.close()
        return drawn

    whole = batches(0, 12)
    assert batches(5, 7) == whole[5:]
    assert {len("first"), len("second")} <= {number for batch in whole for row in batch for number in row}


def test_the_clip_of_a_video_does_not_depend_on_its_captions(tmp_path):
    video = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.full((8, 16, 16, 3), 30, np.uint8)
    write_video(tmp_path / "a.mp4", video, 8)
    plain = VideoFolder(tmp_path, frames=2, size=8)
    metadata(tmp_path, "file_name,text\na.mp4,first\na.mp4,second\n")
    both = VideoFolder(tmp_path, frames=2, size=8, captions="all")
    for seed in range(5):
        drawn = [source.sample(0, np.random.default_rng(seed))["video"] for source in (plain, both)]
        np.testing.assert_array_equal(*drawn)
