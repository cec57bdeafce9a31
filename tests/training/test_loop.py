"""The loop saves what it must before it stops, and goes on as if it never had."""

import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vdm_jax.build import load, split_of
from vdm_jax.errors import InputError
from vdm_jax.training import loop
from vdm_jax.training.loop import train

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))


@pytest.fixture(scope="module")
def config(tmp_path_factory, toy_kinds):
    """A config whose network compiles in no time."""
    config = tiny["get_config"]()
    config.model.network, config.model.text = {"kind": "toy"}, {"kind": "toy"}
    config.steps = 9
    config.data.data_dir = str(tiny["write_videos"](tmp_path_factory.mktemp("videos")))
    config.checkpoint.every = 5
    config.sample.every = 3
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing interrupted: its folder and its state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(train(config, workdir))


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def at(step, action):
    """A `draw_samples` that acts at one step."""

    def draw_samples(model, mesh):
        if model.step == step:
            action()

    return draw_samples


def test_a_run_stopped_by_sigterm_and_by_ctrl_c_ends_like_one_that_was_not(config, whole, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(config, tmp_path, at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped.value.code == 0
    assert (tmp_path / "checkpoints" / "4").is_dir()

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, at(6, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (tmp_path / "checkpoints" / "7").is_dir()

    state = jax.device_get(train(config, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    for name in ("step", "loss", "grad_norm"):
        assert [line[name] for line in metrics(tmp_path)] == [line[name] for line in metrics(whole[0])]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    begun = [json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert [line["step"] for line in begun] == [0, 4, 7]
    assert begun[0]["mesh"] == "data 8"
    assert begun[0]["machine"].startswith("8 × cpu, ")


def test_a_closed_terminal_saves_too_and_a_run_has_one_process(config, tmp_path, monkeypatch, caplog):
    def leave():
        with pytest.raises(InputError, match="another process works there"):
            train(config, tmp_path)
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False, write=refuse))
        os.kill(os.getpid(), signal.SIGHUP)

    def refuse(text):
        raise BrokenPipeError

    monkeypatch.setattr(loop.signal, "getsignal", lambda number: signal.SIG_DFL)  # also where tests run under nohup
    with pytest.raises(SystemExit) as stopped:
        train(config, tmp_path, at(3, leave))
    sys.stderr.close()  # what took its place
    monkeypatch.undo()
    assert stopped.value.code == 0
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, signal.SIG_IGN)

    file = tmp_path / "environment.jsonl"
    file.write_text(file.read_text().replace('"videos": ', '"videos": 1') + '{"step": 4, "vid\n')

    def fail():
        raise InputError("a video must not hold NaN")

    assert train(config, tmp_path, at(6, fail)).step == config.steps
    assert "no samples of step 6: a video must not hold NaN" in caplog.text
    assert "they come in another order" in caplog.text


def test_samples_are_drawn_from_the_averaged_parameters(config, whole, tmp_path):
    drawn = []
    state = train(config, tmp_path, lambda model, mesh: drawn.append(jax.device_get((model.step, model.params))))
    assert [step for step, _ in drawn] == [3, 6, 9]
    jax.tree.map(np.testing.assert_array_equal, drawn[-1][1], jax.device_get(state.ema))
    loaded = load(tmp_path)
    assert (loaded.step, loaded.origin) == (9, str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), drawn[-1][1])


def test_a_run_that_has_begun_needs_no_other_to_begin_with(config, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    config = changed(config, init_from=str(tmp_path / "gone"))
    assert train(config, tmp_path / "run").step == config.steps
    with pytest.raises(InputError, match="gone is no run folder"):
        train(config, tmp_path / "another")


def test_parameters_of_another_run_are_let_go_once_the_state_has_copies(config, whole, tmp_path, monkeypatch):
    splits = []

    def noted(config, model):
        splits.append(split_of(config, model))
        return splits[-1]

    monkeypatch.setattr(loop, "split_of", noted)
    assert train(changed(config, init_from=str(whole[0]), steps=3), tmp_path).step == 3
    arrays = jax.tree.leaves(splits[0].arrays)
    assert arrays
    assert all(array.is_deleted() for array in arrays)


def test_a_part_is_trained_and_the_run_keeps_the_frozen_rest(config, whole, tmp_path):
    run, begun = tmp_path / "run", changed(config, init_from=str(whole[0]), **{"train.parts": "^network/down/"})
    with pytest.raises(SystemExit):
        train(begun, run, at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    state = train(changed(begun, init_from=str(tmp_path / "gone")), run)
    assert int(state.step) == 9
    assert list(state.params) == ["network"]
    assert list(state.params["network"]) == ["down"]
    loaded, ema = jax.device_get(load(run).params), whole[1].ema
    for part, name in (("text", "embed"), ("network", "up")):
        jax.tree.map(np.testing.assert_array_equal, loaded[part][name], ema[part][name])
    jax.tree.map(np.testing.assert_array_equal, loaded["network"]["down"], jax.device_get(state.ema)["network"]["down"])
    assert np.abs(loaded["network"]["down"]["kernel"] - ema["network"]["down"]["kernel"]).max() > 1e-3
    with pytest.raises(InputError, match=r"leaves 3 new parameters untrained \(network/up/bias, \.\.\.\)"):
        train(changed(config, **{"train.parts": "^network/down/"}), tmp_path / "another")


def test_a_finished_run_says_so_and_trains_no_more(config, whole, caplog):
    before = (whole[0] / "metrics.jsonl").read_text()
    with caplog.at_level(logging.INFO):
        state = train(config, whole[0], lambda *_: pytest.fail("drawn again"))
    assert int(state.step) == 9
    assert "finished: it is at step 9, and config.steps=9" in caplog.text
    assert (whole[0] / "metrics.jsonl").read_text() == before


def test_metrics_have_one_line_for_every_step(whole):
    lines = metrics(whole[0])
    assert [line["step"] for line in lines] == list(range(1, 10))
    counters, rates = {"step", "skipped", "skipped_in_a_row"}, {"learning_rate", "videos_per_second", "seconds"}
    assert lines[-1].keys() >= counters | rates | {"loss", "mse", "grad_norm"}
    assert [round(line["learning_rate"], 6) for line in lines[:3]] == [0, 0.005, 0.01]


def test_a_line_that_was_cut_off_and_those_of_steps_done_again_are_dropped(whole, config, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "9")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    train(config, workdir)
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 10))
    assert [line["loss"] for line in metrics(workdir)] == [line["loss"] for line in metrics(whole[0])]
    # The time of the first line is that of the compilation: a time left comes with the second.
    progress = re.findall(r"step (\d)/9 .* (compiled|\d+:\d\d:\d\d left)", capsys.readouterr().err)
    assert [end.split()[-1] for _, end in progress] == ["compiled", "left", "left", "left"]
    assert progress[-1] == ("9", "0:00:00 left")


def test_too_many_steps_that_are_not_finite_stop_the_run(config, tmp_path):
    # The second step's update overflows.
    config = changed(config, max_skipped=3, **{"optimizer.learning_rate": 1e38, "checkpoint.every": 2})
    with pytest.raises(InputError, match=r"step \d: 3 losses or gradients in a row were not finite"):
        train(config, tmp_path)
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] is None
    assert lines[-1]["skipped"] == 3
    assert len({line["learning_rate"] for line in lines[-3:]}) == 1  # it goes by the updates that were made
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert kept
    assert max(kept) < lines[-1]["step"]


# Threads of Orbax report to an event loop that the failure has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_what_was_saved(config, whole, tmp_path, caplog, what):
    """The limit of a file's size stands for the disk."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        while not (tmp_path / "checkpoints" / "5").is_dir():  # it is written in the background
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))

    changes = {"sample.every": 1, "log_every": 9 if what == "checkpoint" else 1}
    try:
        with pytest.raises(InputError, match="cannot be written: File too large; saved checkpoints stay good") as error:
            train(changed(config, **changes), tmp_path, at(6, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert ("/checkpoints/9" in str(error.value.__cause__)) == (what == "checkpoint")
    assert not caplog.records
    state = jax.device_get(train(config, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_a_workdir_that_cannot_be_written_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/config\.json cannot be written: File exists"):
        train(config, tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 12}, "batch_size=12 must be a multiple of data × fsdp = 8"),
        ({"accumulate": 2}, "batch_size=8 must be a multiple of accumulate × data × fsdp = 16"),
        ({"data.frames": 8}, "none of its 11 videos gives a clip"),
        ({"data.channels": 1}, r"clips of folder are \(4, 8, 8, 3\).*not \(4, 8, 8, 1\)"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"log_every": 0}, "log_every=0 must be at least 1"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(config, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        train(changed(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
