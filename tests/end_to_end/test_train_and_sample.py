"""The commands as a user gives them: train, be killed, train on, sample."""

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from vdm_jax.generation.inputs import read_clip
from vdm_jax.video import read_metadata, read_video

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny["write_videos"](folder / "videos")
    return folder


def train(world, workdir, *arguments, devices=1, **variables):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(world / "cache"),  # a separate one, as a process may be killed while it writes
        **variables,
    }
    command = [sys.executable, "experiments/train.py", "--config=tests/tiny_config.py", f"--workdir={workdir}"]
    command += [f"--config.data.data_dir={world / 'videos'}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def run(world):
    """Trains 20 steps on one device without interruption, with samples and a trace."""
    out, err = finish(train(world, world / "run", "--config.profile.start=3", "--config.profile.steps=2"))
    assert "20 steps done" in out
    assert "step 20/20" in err
    return world / "run"


def everything(run, step):
    """Returns all arrays of a checkpoint."""
    metadata = ocp.checkpointables_metadata(run / "checkpoints" / str(step)).metadata
    here = SingleDeviceSharding(jax.devices()[0])
    parts = {
        part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), metadata[part])
        for part in ("params", "ema", "rest")
    }
    return jax.device_get(ocp.load_checkpointables(run / "checkpoints" / str(step), parts))


def free_port():
    """Returns a free port below the ports that systems assign."""
    while True:
        with contextlib.closing(socket.socket()) as trial, contextlib.suppress(OSError):
            trial.bind(("localhost", random.randrange(20_000, 32_000)))
            return trial.getsockname()[1]


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("devices", [1, 8])
def test_twenty_steps_are_ten_and_a_kill_and_ten_more_bit_for_bit(world, run, devices):
    sizes = ["--config.mesh.fsdp=4"] if devices == 8 else []
    whole = run
    if devices == 8:
        whole = world / "whole8"
        finish(train(world, whole, "--config.sample.every=0", *sizes, devices=8))

    broken = world / f"broken{devices}"
    # After its first checkpoint it draws without end, so that it is killed before the second.
    process = train(world, broken, "--config.sample.every=10", "--config.sample.steps=1000000", *sizes, devices=devices)
    end = time.monotonic() + 300
    try:
        while not (broken / "checkpoints" / "10").is_dir():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "checkpoints" / "20").exists()

    _, err = finish(train(world, broken, "--config.sample.every=0", *sizes, devices=devices))
    assert "going on from step 10" in err
    jax.tree.map(np.testing.assert_array_equal, everything(broken, 20), everything(whole, 20))
    assert [step for step, *_ in losses(broken)] == list(range(1, 21))
    assert losses(broken) == losses(whole)


def test_a_run_on_eight_devices_learns_what_one_device_learns(world, run):
    if not (world / "whole8").exists():
        pytest.skip("the run on eight devices was not selected")
    np.testing.assert_allclose(losses(run), losses(world / "whole8"), rtol=2e-3)


@pytest.mark.parametrize("size", ["fsdp=2", "tensor=4"])
def test_two_processes_train_what_one_does(world, run, size):
    """Launches both by hand, as on two hosts without a cluster's manager; gloo exchanges the gradients.

    With fsdp each reads half of every batch; with a tensor axis over both, each reads all of it.
    """
    address = f"localhost:{free_port()}"
    variables, workdir = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}, world / size
    sheets = [] if size == "fsdp=2" else ["--config.sample.every=0"]
    pair = [
        train(world, workdir, f"--config.mesh.{size}", *sheets, devices=2, **variables, JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]
    try:
        logs = [finish(process)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()  # if the other process failed
    assert "process 0 of 2" in logs[0]
    assert "process 1 of 2" in logs[1]
    np.testing.assert_allclose(losses(workdir), losses(run), rtol=2e-3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3)
    jax.tree.map(close, everything(workdir, 20)["ema"], everything(run, 20)["ema"])


def test_a_run_folder_holds_its_config_parameters_samples_and_trace(run):
    assert json.loads((run / "config.json").read_text())["model"]["network"]["channels"] == 8
    assert "network/stem" in (run / "parameters.txt").read_text()
    assert sorted(path.name for path in (run / "samples").glob("*.png")) == ["0000010.png", "0000020.png"]
    metadata = {"step": 20, "seed": 0, "prompts": ["clip 3"]}
    assert read_metadata(run / "samples" / "0000020.png") == metadata
    assert list((run / "profile").rglob("*.xplane.pb"))


def sampled(outcome, run, *arguments):
    """Runs sample.py; returns its standard output and error."""
    status, out, err = outcome(ROOT, "experiments/sample.py", "--run", run, *arguments)
    assert status == 0, err
    return out, err


def test_samples_are_written_in_every_format_with_their_settings(world, run, outcome):
    prompts = ["--prompt", "clip 3", "--prompt=", "--num=2", "--seed=7", "--batch_size=3"]
    settings = ["--steps=3", "--solver=heun", "--guidance=2", "--format=gif,mp4,webm,png,npy"]
    out, _ = sampled(outcome, run, *prompts, *settings, "--out", world / "out")
    assert "4 videos in" in out
    stems = ["000-clip-3", "001-clip-3", "002-unconditional", "003-unconditional"]
    for number, stem in enumerate(stems):
        for suffix in ("gif", "mp4", "webm", "png", "npy"):
            metadata = read_metadata(world / "out" / f"{stem}.{suffix}")
            assert metadata["prompt"] == ("clip 3" if number < 2 else "")
            assert (metadata["seed"], metadata["number"], metadata["step"]) == (7, number, 20)
            assert (metadata["steps"], metadata["solver"], metadata["guidance"]) == (3, "heun", 2.0)
    assert read_metadata(world / "out" / "sheet.png")["prompts"] == ["clip 3"] * 2 + [""] * 2
    video = np.load(world / "out" / "000-clip-3.npy")
    assert video.shape == (4, 8, 8, 3)
    assert np.abs(video).max() <= 1
    frames, fps = read_video(world / "out" / "000-clip-3.mp4")
    assert frames.shape == (4, 128, 128, 3)
    assert fps == 8
    assert "also holds" not in out
    out, _ = sampled(outcome, run, "--prompt=clip 3", "--steps=3", "--format=gif", "--out", world / "out")
    assert "also holds 19 files of earlier commands: 000-clip-3.mp4, 000-clip-3.npy, 000-clip-3.png …" in out


def test_a_video_is_extended_at_its_own_rate(world, run, outcome):
    video = world / "videos" / "0.gif"
    arguments = ["--video", video, "--extend=5", "--context=1", "--steps=3", "--format=npy"]
    _, err = sampled(outcome, run, "--prompt=clip 3", *arguments, "--out", world / "extended")
    assert "10×12 pixels; the middle part is cut to the proportions of 8×8 and resized" in err
    assert "2/2" in err  # two windows: three frames, and the last two
    whole = np.load(world / "extended" / "000-clip-3.npy")
    known, fps, _ = read_clip(video, (8, 8), 3)
    assert whole.shape == (11, 8, 8, 3)
    np.testing.assert_array_equal(whole[:6], known)
    metadata = read_metadata(world / "extended" / "000-clip-3.npy")
    assert (metadata["fps"], metadata["video"], metadata["extend"]) == (fps, str(video), 5)
