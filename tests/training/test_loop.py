"""The loop saves what it must before it stops, and goes on as if it never had."""

import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.configuration import objective_of, process_of
from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.training import loop
from vdm_jax.training.trainee import Trainee

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny["get_config"]()
    config.steps = 9
    config.data.data_dir = str(tiny["write_videos"](tmp_path_factory.mktemp("videos")))
    config.checkpoint.every = 5
    config.sample.every = 3
    return config


@pytest.fixture(scope="module")
def train(config, make_toy):
    """The loop, with a network that compiles in no time."""

    def make():
        return make_toy(Keys(config.seed), channels=3)

    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    trainee = Trainee(
        graphdef=graphdef,
        tokenize=lambda text: np.full(5, 1 + len(text) % 9, np.int32),
        null_tokens=np.zeros(5, np.int32),
        process=process_of(config),
        objective=objective_of(config),
        shapes=nnx.to_pure_dict(shapes),
        initialise=lambda: nnx.to_pure_dict(nnx.split(make())[1]),
    )
    return functools.partial(loop.train, trainee=trainee)


@pytest.fixture(scope="module")
def whole(config, train, tmp_path_factory):
    """A run that nothing interrupted: its folder and its state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(train(config, workdir))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def at(step, action):
    """A `draw_samples` that acts at one step."""

    def draw_samples(graphdef, params, mesh, now):
        if now == step:
            action()

    return draw_samples


def test_a_run_stopped_by_sigterm_and_by_ctrl_c_ends_like_one_that_was_not(config, train, whole, tmp_path):
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


def test_a_closed_terminal_saves_too_and_a_run_has_one_process(config, train, tmp_path, monkeypatch, caplog):
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


def test_a_run_that_has_begun_needs_no_other_to_begin_with(config, train, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "gone")
    assert train(config, tmp_path / "run").step == config.steps
    with pytest.raises(InputError, match="gone is no run folder"):
        train(config, tmp_path / "another")


def test_what_a_trainee_begins_with_is_let_go(config, train, tmp_path):
    config = config.copy_and_resolve_references()
    config.steps = 3
    given = jax.device_put(train.keywords["trainee"].initialise())
    trainee = dataclasses.replace(
        train.keywords["trainee"], initialise=lambda params: jax.tree.map(jnp.copy, params), given=(given,)
    )
    assert loop.train(config, tmp_path, trainee=trainee).step == 3
    assert all(array.is_deleted() for array in jax.tree.leaves(given))


def test_a_finished_run_says_so_and_trains_no_more(config, train, whole, caplog):
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


def test_a_line_that_was_cut_off_and_those_of_steps_done_again_are_dropped(whole, config, train, tmp_path, capsys):
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


def test_too_many_steps_that_are_not_finite_stop_the_run(config, train, tmp_path):
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = 1e38  # the second step's update overflows
    config.max_skipped = 3
    config.checkpoint.every = 2
    with pytest.raises(InputError, match=r"step \d: 3 losses or gradients in a row were not finite"):
        train(config, tmp_path)
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] is None
    assert lines[-1]["skipped"] == 3
    assert len({line["learning_rate"] for line in lines[-3:]}) == 1  # it goes by the updates that were made
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert kept
    assert max(kept) < lines[-1]["step"]


def test_a_workdir_that_cannot_be_written_is_refused(config, train, tmp_path):
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
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
