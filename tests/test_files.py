"""Files are written completely or not at all, and a folder has one process at a time."""

import pytest

from vdm_jax.errors import InputError
from vdm_jax.files import alone_in, read_json_lines, whole_file, write_text


def test_a_file_appears_at_the_end_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_text(path, "old")
    with whole_file(path) as part:
        part.write_text("new")
        assert (path.read_text(), part.suffix) == ("old", ".json")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_if_writing_fails_only_the_old_file_is_left(tmp_path, error):
    path = tmp_path / "b.json"
    write_text(path, "old")

    def fail():
        with whole_file(path) as part:
            part.write_text("ne")
            raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/page.html cannot be written: File exists"):
        write_text(tmp_path / "file" / "page.html", "")


def test_lines_that_were_cut_off_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n{"step"')
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_folder_has_one_process_at_a_time_and_keeps_no_trace(tmp_path):
    with alone_in(tmp_path), pytest.raises(InputError, match="another process works there"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written: Not a directory"), alone_in(tmp_path / "file"):
        pass
