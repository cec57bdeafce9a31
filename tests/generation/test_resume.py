"""An interrupted drawing continues; a file of another drawing, or a damaged one, does not count."""

import numpy as np
import pytest

from tests.generation.stand_in import SIZE, Counting
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import text_to_video
from vdm_jax.generation.resume import fingerprint, remove_partial
from vdm_jax.generation.windows import generate

NINE = text_to_video((9, *SIZE, 1), 8.0)


def draw(pipeline, file=None, prompt="a", **options):
    return list(generate(pipeline, [prompt], NINE, context=1, partial=file, **options))


@pytest.fixture
def file(tmp_path):
    """The file of a drawing that was interrupted in its third window."""
    file = tmp_path / "partial.npy"
    with pytest.raises(KeyboardInterrupt):
        draw(Counting(breaks_at=2), file)
    return file


def test_an_interrupted_drawing_continues_after_its_last_window(file, tmp_path):
    pipeline = Counting()
    videos = draw(pipeline, file)
    assert [block for _, block, *_ in pipeline.windows] == [2]
    assert len(videos) == 3
    assert isinstance(videos[-1], np.memmap)
    np.testing.assert_array_equal(videos[-1], draw(Counting())[-1])
    remove_partial(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"prompt": "b"}, {"seed": 1}])
def test_another_drawing_begins_at_its_beginning(file, change):
    pipeline = Counting()
    draw(pipeline, file, **change)
    assert len(pipeline.windows) == 3


@pytest.mark.parametrize(("suffix", "kept"), [(".npy", 20), (".npy", -4), (".npy", 0), (".json", 20)])
def test_a_damaged_file_is_replaced(file, suffix, kept):
    damaged, pipeline = file.with_suffix(suffix), Counting()
    damaged.write_bytes(damaged.read_bytes()[:kept])
    draw(pipeline, file)
    assert len(pipeline.windows) == 3


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/partial\.npy cannot be written: Not a directory"):
        draw(Counting(), tmp_path / "file" / "partial.npy")


def test_a_fingerprint_depends_on_arrays_and_on_all_else():
    numbers = np.arange(3.0)
    prints = {fingerprint(numbers, "a"), fingerprint(numbers + 1, "a"), fingerprint(numbers, "b")}
    assert len(prints) == 3
    assert fingerprint(np.arange(3.0), "a") in prints
