"""A network that is registered under a kind has everything: training, sampling, guidance, sharding, checkpoints."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax import Pipeline, load
from vdm_jax.build import NETWORKS, build
from vdm_jax.config import default_config
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.models.convolution import with_neighbours
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.positions import sinusoid
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.training.loop import train
from vdm_jax.video import write_video

FRAMES, SIDE = 4, 8
PROMPTS = ["clip 3", ""]
MESHES = {
    "tensor": dict(data=4, tensor=2),
    "context": dict(data=2, fsdp=2, context=2),
    "data": dict(data=8),
}


class Toy(nnx.Module):
    """Mixes the channels of a pixel, then the pixel with itself in the frames before and after."""

    def __init__(self, *, channels_in, channels_out, text_width, pooled_width, width=16, dtype, rngs):
        del text_width  # tokens are not read
        common = dict(dtype=dtype, rngs=rngs)
        self.width = width
        self.time = nnx.Linear(width, width, **common)
        self.pooled = nnx.Linear(pooled_width, width, **common) if pooled_width else None
        self.up = nnx.Linear(channels_in, width, **common)
        self.mix = nnx.Linear(3 * width, width, **common)
        self.down = nnx.Linear(width, channels_out, **common)

    def check(self, frames, height, width, stills=0):
        """Raises InputError for a video without neighbours."""
        if frames < 2:
            raise InputError(f"frames={frames} must be at least 2 (toy)")

    def __call__(self, z, time, conditions, *, key=None, layout=ONE_DEVICE):
        """Predicts from the noisy video."""
        text, known, _, is_still = conditions
        if known is not None:
            z = jnp.concatenate([z, known], axis=-1)
        embedding = self.time(sinusoid(time.reshape(len(time), -1), self.width))
        if self.pooled is not None:
            embedding = embedding + self.pooled(text.pooled)
        x = layout(self.up(layout(z, "space")) + embedding[:, :, None, None], "space")
        x = layout(x, "time")
        x = layout(x + self.mix(with_neighbours(jnp.tanh(x), is_still)), "time")
        return layout(self.down(jnp.tanh(layout(x, "space"))), "space").astype(jnp.float32)


@pytest.fixture(scope="module", autouse=True)
def toy():
    NETWORKS["toy"] = Toy
    yield
    del NETWORKS["toy"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Returns a folder of eleven captioned videos of noise."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(11):
        write_video(folder / f"{number}.gif", rng.integers(256, size=(5, 9, 9, 3)).astype(np.uint8), fps=8)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def small_config(**mesh):
    config = default_config()
    config.steps, config.batch_size, config.log_every, config.tensorboard = 2, 8, 1, False
    config.data.update(name="folder", frames=FRAMES, height=SIDE, width=SIDE, channels=3)
    config.model.network = dict(kind="toy", width=16)
    config.model.text = dict(kind="bytes", width=16, depth=0, length=16, head_size=16)
    config.known.mixture = dict(nothing=1.0, first=1.0)
    config.optimizer.update(warmup=0, learning_rate=1e-2, decay="constant")
    config.sample.update(steps=3, guidance=2.0)
    config.mesh.update(mesh)
    return config


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """Returns the folder and the last state of a run that was trained on a mesh."""

    @functools.cache
    def run(name):
        config, folder = small_config(**MESHES[name]), tmp_path_factory.mktemp(name)
        config.data.data_dir = str(videos)
        return folder, train(config, folder)

    return run


def assert_close(left, right, **tolerances):
    compare = functools.partial(np.testing.assert_allclose, **tolerances)
    jax.tree.map(compare, jax.device_get(left), jax.device_get(right))


def test_it_trains_on_every_mesh_alike(run):
    _, state = run("tensor")
    assert (int(state.step), int(state.skipped)) == (2, 0)
    kernel = state.params["network"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (kernel.shape[0], kernel.shape[1] // 2)
    assert_close(run("context")[1].params, state.params, rtol=1e-3, atol=1e-5)


def test_the_folder_holds_what_was_trained(run):
    folder, state = run("tensor")
    model = load(folder)
    assert (model.step, model.origin, model.tell) == (2, str(folder), "channels")
    assert_close(model.params, state.ema)
    mesh = make_mesh(data=4, tensor=2)
    kernel = load(folder, mesh=mesh).params["network"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // 2


@pytest.fixture(scope="module")
def pipeline(run):
    return Pipeline(load(run("tensor")[0]))


def draw(pipeline, **changes):
    return np.concatenate(list(pipeline.batches(PROMPTS, seed=7, **changes)))


@pytest.fixture(scope="module")
def known():
    """Returns the first frame of a video, or noise in place of the other frames."""
    video = np.random.default_rng(0).uniform(-1, 1, (2, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    return Known(video, (np.arange(FRAMES) == 0)[None, :, None, None, None])


def test_it_draws_the_same_on_every_mesh(run, pipeline):
    videos = draw(pipeline)
    assert videos.shape == (2, FRAMES, SIDE, SIDE, 3)
    assert videos.std() > 0.1
    for sizes in MESHES.values():
        mesh = make_mesh(**sizes)
        np.testing.assert_allclose(draw(Pipeline(load(run("tensor")[0], mesh=mesh), mesh)), videos, atol=1e-4)


def test_guidance_is_a_line_from_the_null_condition(pipeline):
    null, text, guided = (draw(pipeline, guidance=scale, steps=1, clip=None) for scale in (0.0, 1.0, 2.0))
    assert np.abs(text - null)[0].max() > 1e-4
    np.testing.assert_allclose(null[1], text[1], atol=1e-6)  # the empty prompt is the null condition
    inside = np.abs([null, text, guided]).max(0) < 1  # of the range of pixels
    np.testing.assert_allclose(guided[inside], (2 * text - null)[inside], atol=1e-5)


@pytest.mark.parametrize("respect", ["replace", "reconstruct", "concat"])
def test_a_mask_is_respected(pipeline, known, respect):
    videos = draw(pipeline, known=known, respect=respect)
    np.testing.assert_array_equal(videos[:, 0], known.video[:, 0])
    other = known._replace(video=-known.video)
    changed = np.abs(draw(pipeline, known=other, respect=respect) - videos)
    assert changed[:, 1].max() > 1e-3  # the next frame sees the known one
    hidden = known._replace(video=np.where(known.mask, known.video, 9.0))
    np.testing.assert_array_equal(draw(pipeline, known=hidden, respect=respect), videos)


@pytest.mark.parametrize("changes", [dict(respect="times"), dict(pyramid=1)])
def test_frames_may_have_times_of_their_own(known, changes):
    config = small_config()
    config.known.tell = "times"
    model, rng = build(config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), model.params)
    pipeline = Pipeline(dataclasses.replace(model, params=params))
    assert pipeline.settings.respect == "times"
    kept = known if "respect" in changes else None
    videos = draw(pipeline, known=kept, **changes)
    if kept is not None:
        np.testing.assert_array_equal(videos[:, 0], known.video[:, 0])
    assert np.abs(draw(pipeline) - videos).max() > 1e-3


# ---------------------------------------------------------------------------------------------- bad input


def refused(message, **changes):
    config = small_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_a_part_that_cannot_be_made_is_one_line():
    refused(
        r"model\.network\.kind='dit9' must be one of unet, .*toy, or model\.network have a folder",
        **{"model.network.kind": "dit9"},
    )
    refused(r"model\.text\.kind='words' must be one of bytes, .*none, or", **{"model.text.kind": "words"})
    refused(r"model\.codec\.kind='jpeg' must be 'pixels', or", **{"model.codec.kind": "jpeg"})
    refused(r"frames=1 must be at least 2 \(toy\)", **{"data.frames": 1})
    config = small_config()
    config.model.network.depth = 3
    with pytest.raises(InputError, match=r"config\.model\.network does not fit 'toy': .*'depth'"):
        build(config)
    config.model.network = dict(width=16)
    with pytest.raises(InputError, match=r"model\.network\.kind=None must be one of"):
        build(config)


def test_a_time_for_each_frame_needs_frames_of_their_own():
    for changes in ({"objective": dict(prediction="v", time_per_frame=True)}, {"known.tell": "times"}):
        config = small_config()
        config.known.mixture = {"first": 1.0} if "known.tell" in changes else {}
        config.model.network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=8, patch_time=2)
        config.update_from_flattened_dict(changes)
        with pytest.raises(InputError, match=r"a time for each frame needs a network with patch_time=1"):
            build(config)


def test_settings_that_do_not_fit_each_other_are_one_line():
    config = small_config()
    config.process.frame_correlation = 0.5
    assert build(config).process.frame_correlation == 0.5
    config.data.joint_images = 2
    with pytest.raises(InputError, match=r"process.frame_correlation=0.5 must be 0 with data.joint_images=2"):
        build(config)
    config = small_config()
    config.process.shift = 2.0
    assert build(config).process.shift == 2.0
    config.objective.gama = 2.0
    with pytest.raises(InputError, match=r"config\.objective=.*gama"):
        build(config)


@pytest.mark.parametrize(("name", "value"), [("noise", 0.3), ("downsample", 2), ("tell", "times")])
def test_settings_of_known_pixels_need_masks(name, value):
    config = small_config()
    config.known[name] = value
    assert getattr(build(config).masks, name) == value
    config.known.mixture = {}
    with pytest.raises(InputError, match=rf"known\.{name}={value} needs known\.mixture"):
        build(config)


def test_a_coarse_video_has_whole_pixels():
    refused(
        r"data\.height=9 must be a multiple of known\.downsample=2",
        **{"known.downsample": 2, "data.height": 9},
    )


def test_what_is_no_run_is_one_line(tmp_path, run):
    for name in (tmp_path, tmp_path / "missspelt", "ali-vilab/text-to-video-ms-1.7b"):  # empty, absent, of the hub
        with pytest.raises(InputError, match=r"is no run folder: it holds no config\.json; nor a published model: "):
            load(name, dtype="bfloat16")
    for options in ({"chunk": 2}, {"dtype": "bfloat16"}):
        with pytest.raises(InputError, match=f"is a run, which has no option {min(options)}: its config decides"):
            load(run("tensor")[0], **options)
