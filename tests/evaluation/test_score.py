"""Scores: known clips have known scores, nothing is drawn twice, and bad input is refused."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained import test_clip_pair, test_videomae
from tests.pretrained.make_golden_features import (
    GOLDEN,
    VIDEOMAES,
    clips,
    i3d_weights,
    lpips_weights,
    write_clip,
    write_folder,
)
from tests.pretrained.networks import relative
from vdm_jax.build import build, new_params
from vdm_jax.config import default_config
from vdm_jax.data import moving_digits as digits
from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError
from vdm_jax.evaluation import features, metrics, temporal
from vdm_jax.evaluation import judge as ev
from vdm_jax.evaluation.confidence import bootstrap, bootstrap_mean, wilson
from vdm_jax.evaluation.frechet import frechet_distance, unbiased_frechet_distance
from vdm_jax.evaluation.metrics import EXTRACTORS, METRICS, OF_KNOWN, check_metrics, default_metrics, load_networks
from vdm_jax.evaluation.reference import Clips, RealData, read_clips
from vdm_jax.evaluation.score import floors, score
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.parallel.mesh import make_mesh

NUM, BATCH = 20, 8  # the last batch is short
OF_DIGITS = [name for name, metric in METRICS.items() if metric.extractor not in ("i3d", "videomae", "clip", *OF_KNOWN)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resamples: intervals are tested in test_confidence.py."""
    monkeypatch.setattr(metrics, "bootstrap", lambda *rows, resamples=3: bootstrap(*rows, resamples=3))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    config = dataclasses.replace(digits.MovingDigits.BUILDER_CONFIGS[0], name="tiny", train_clips=1, test_clips=1)
    builder = digits.prepare(tmp_path_factory.mktemp("moving_digits"), config)
    found = []
    for split in ("train", "test"):
        source = builder.as_data_source(split=split)
        rows = [source[i] for i in range(len(source))]
        found.append([row | {"caption": row["caption"].decode()} for row in rows])
    return found


@pytest.fixture(scope="module")
def judge(sources):
    labels = [np.concatenate([row[key] for row in sources[0]]) for key in ("digit", "direction")]
    return ev.train_judge(np.stack([row["video"] for row in sources[0]]), *labels, recipe=ev.Recipe(steps=60, batch=64))


@pytest.fixture
def data(sources, judge):
    return RealData("digits", held_out=sources[1], reference=sources[0][:200], judge=lambda: judge)


@pytest.fixture(scope="module")
def pipeline():
    config = default_config()
    config.sample.steps = 1
    config.model.network = {"kind": "unet", "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 8, "patch": 4}
    config.model.text = {"kind": "bytes", "width": 16, "depth": 0, "length": 64, "head_size": 16}
    return pipeline_of(config)


def pipeline_of(config):
    """A pipeline of a new model."""
    model = build(config)
    params = jax.jit(lambda: new_params(config, model))()
    return Pipeline(dataclasses.replace(model, params=params, step=3), make_mesh(devices=jax.devices()[:1]))


def changed(pipeline, **fields):
    """The pipeline with other fields of its model."""
    return dataclasses.replace(pipeline, model=dataclasses.replace(pipeline.model, **fields))


@dataclasses.dataclass(frozen=True, eq=False)
class Copier(Pipeline):
    """Returns the given clips, by their numbers."""

    clips: np.ndarray | None = None

    def __call__(self, prompts, *, first, **_):
        return self.clips[first + np.arange(len(prompts)).clip(max=len(self.clips) - 1 - first)] / np.float32(127.5) - 1


def copier(pipeline, clips):
    return Copier(clips=np.asarray(clips), **{f.name: getattr(pipeline, f.name) for f in dataclasses.fields(Pipeline)})


def near(found, expected):
    assert found.keys() == expected.keys()
    for name, interval in found.items():
        ends = [dataclasses.astuple(x) for x in (interval, expected[name])]
        np.testing.assert_allclose(*ends, rtol=1e-3, atol=1e-4, err_msg=name)


def test_real_clips_score_as_real_and_shuffled_ones_as_their_floor(pipeline, data):
    how = {"num": NUM, "seed": 1, "batch_size": BATCH}
    found = floors(data, OF_DIGITS, **how)
    real = read_clips(data, NUM, 1).videos
    near(score(copier(pipeline, real), data, OF_DIGITS, **how), found["real"])
    near(score(copier(pipeline, ev.shuffle_frames(real, jax.random.key(0))), data, OF_DIGITS, **how), found["shuffled"])


def test_a_caption_is_no_prompt_that_travels(pipeline, data):
    captions = ["10:30 at the station", "0: intro | 7: the end"]
    named = [row | {"caption": captions[i % 2]} for i, row in enumerate(data.held_out[i] for i in range(NUM))]
    data = dataclasses.replace(data, held_out=named)
    how = {"num": NUM, "batch_size": BATCH}
    plain, travelling = (
        score(changed(pipeline, text_per_frame=each), data, ("flicker",), **how) for each in (False, True)
    )
    near(travelling, plain)


def test_floors_tell_what_a_metric_sees(data):
    found = floors(data, OF_DIGITS, num=NUM)
    of = {name: [found[row][name].value for row in ("real", "shuffled", "frozen")] for name in OF_DIGITS}
    assert of["direction"][0] > 0.8 > max(of["direction"][1:])
    assert of["digit"][0] == of["digit"][1]  # blind to the order of frames
    assert of["digits_fid"][0] == pytest.approx(of["digits_fid"][1], rel=1e-3)
    assert of["digits_fvd"][2] > 2 * of["digits_fvd"][0]
    assert of["jerk"][1] > 2 > 0.1 > of["jerk"][0]
    assert of["smoothness"][1] < of["smoothness"][0] < of["smoothness"][2] == 1
    assert of["warping"][1] > 10 * of["warping"][0]
    assert of["occluded"][1] > of["occluded"][0]
    assert of["flicker"][2] == of["dynamic"][2] == of["jerk"][2] == 0
    assert of["dynamic"][0] > 0.5
    assert of["identity"][2] == 1
    assert of["novelty"][0] == pytest.approx(0.5)
    assert of["digits_fvd_infinite"][0] < of["digits_fvd"][0]  # the distance of few clips is too large


def test_figures_are_those_of_the_functions_that_they_are_named_for(data, sources, judge):
    found = floors(data, OF_DIGITS, num=NUM, seed=2, batch_size=BATCH)["real"]
    order, other = (np.random.default_rng(2).permutation(n)[:NUM] for n in (len(sources[1]), 200))
    rows, reference = [sources[1][i] for i in order], [sources[0][i] for i in other]
    real, training, every = (
        np.stack([row["video"] for row in of]).astype(np.float32) / 127.5 - 1
        for of in (rows, reference, sources[0][:200])
    )
    digits, directions = (np.concatenate([row[key] for row in rows]) for key in ("digit", "direction"))
    seen, expected = judge(real), judge(training)
    digit, direction = seen.digit.argmax(1) == digits, seen.direction.argmax(1) == directions
    assert found["digit"] == wilson(np.asarray(digit))
    assert found["direction"].value == pytest.approx(float(direction.mean()))
    assert found["both"].value == pytest.approx(float((digit & direction).mean()))
    for name, (a, b) in {
        "digits_fvd": (expected.features, seen.features),
        "digits_fid": (np.asarray(expected.frames).reshape(-1, 64), np.asarray(seen.frames).reshape(-1, 64)),
    }.items():
        assert found[name].value == pytest.approx(frechet_distance(a, b), rel=1e-3)
    infinite = unbiased_frechet_distance(expected.features, seen.features)
    assert found["digits_fvd_infinite"].value == pytest.approx(infinite, rel=1e-2)
    distances = ev.nearest(real, every)[0]
    assert found["novelty"].value == pytest.approx(ev.rank(distances, distances).mean())
    assert found["jerk"].value == pytest.approx(float(ev.jerk(real).mean()), abs=1e-5)
    for name, metric in {"flicker": temporal.flicker, "warping": temporal.warping_error}.items():
        assert found[name] == bootstrap_mean(metric(real))


def test_the_interval_of_a_mean_rank_is_of_both_sets(monkeypatch):
    monkeypatch.setattr(metrics, "bootstrap", bootstrap)
    novelty = METRICS["novelty"].figure(*np.random.default_rng(0).uniform(size=(2, 200)))
    assert novelty.high - novelty.low == pytest.approx(2 * 1.96 * np.sqrt((1 / 200 + 1 / 200) / 12), rel=0.15)


@pytest.fixture
def drawings(monkeypatch):
    """Counts the batches that are drawn; "stop": number of batches after which drawing is interrupted."""
    counted, draw = collections.Counter(), Pipeline.__call__

    def counting(self, *arguments, **settings):
        if counted["drawn"] == counted.get("stop"):
            raise KeyboardInterrupt
        counted["drawn"] += 1
        return draw(self, *arguments, **settings)

    monkeypatch.setattr(Pipeline, "__call__", counting)
    return counted


def test_an_interrupted_call_goes_on_and_nothing_is_drawn_twice(pipeline, data, drawings, tmp_path, caplog):
    how = {"num": NUM, "batch_size": BATCH, "guidance": 2.0, "folder": tmp_path / "kept"}
    drawings["stop"] = 2
    with pytest.raises(KeyboardInterrupt):
        score(pipeline, data, ["flicker"], **how)
    del drawings["stop"]
    found = score(pipeline, data, ["flicker"], **how)
    assert drawings["drawn"] == 3
    assert found == score(pipeline, data, ["flicker"], **how | {"folder": None})
    assert drawings["drawn"] == 6
    videos = np.concatenate(list(pipeline.batches(read_clips(data, NUM).captions, batch_size=BATCH, guidance=2.0)))
    assert found["flicker"] == bootstrap_mean(temporal.flicker(videos))
    score(pipeline, data, ["jerk", "dynamic"], **how)
    assert drawings["drawn"] == 6
    assert not caplog.text
    one = min((tmp_path / "kept").glob("videos-*"))
    one.write_bytes(one.read_bytes()[:-100])
    assert score(pipeline, data, ["flicker"], **how) == found
    assert f"{one.name} is damaged" in caplog.text
    assert drawings["drawn"] == 7
    assert not list((tmp_path / "kept").glob(".*"))


def test_another_drawing_is_drawn(pipeline, data, drawings, tmp_path):
    how = {"num": BATCH, "folder": tmp_path}
    weights = jax.tree.map(lambda x: x + 1, pipeline.model.params)
    found = [
        score(pipeline, data, ["flicker"], **how),
        score(pipeline, data, ["flicker"], **how, seed=1),
        score(pipeline, data, ["flicker"], **how, guidance=2.0),
        score(changed(pipeline, params=weights), data, ["flicker"], **how),
        score(changed(pipeline, step=4), data, ["flicker"], **how),
        score(changed(pipeline, process=make_process("flow")), data, ["flicker"], **how),
        score(changed(pipeline, prediction="x"), data, ["flicker"], **how),
    ]
    assert drawings["drawn"] == len(found)
    assert score(pipeline, data, ["flicker"], **how) == found[0]
    assert drawings["drawn"] == len(found)


def test_progress_is_told(pipeline, data):
    told = {}

    def progress(batches, what):
        told[what] = len(batches)
        return batches

    score(pipeline, data, ["digits_fvd"], num=NUM, batch_size=BATCH, guidance=1.5, progress=progress)
    assert told == {"reading real clips": 1, "guidance 1.5": 3, "reference clips": 3}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    config = VIDEOMAES["videomae"]
    videomae = write_folder(folder / "videomae", config, test_videomae.tensors(config))
    return {"videomae": videomae, "clip": write_clip(folder / "clip", test_clip_pair.tensors())}


def test_published_networks_give_their_metrics(networks):
    noise = np.random.default_rng(0).integers(256, size=(8, 6, 16, 16, 3)).astype(np.uint8)
    items = [{"video": clip, "caption": ("the cat", "a thing")[i % 2]} for i, clip in enumerate(noise)]
    data = RealData("noise", items[:4], items[4:])
    names = default_metrics(data, networks)
    assert names[-4:] == ("videomae", "clip", "clip_fid", "consistency")
    loaded = load_networks(names[-4:], data, networks, mesh=make_mesh(devices=jax.devices()[:1]))
    assert loaded.keys() == {"videomae", "clip"}
    assert len({network.digest for network in loaded.values()}) == 2
    found = floors(data, names[-4:], num=4, networks=loaded)["real"]
    real, reference = read_clips(data, 4), read_clips(data, 4, which="reference")
    frames = features.clip_image_features(loaded["clip"].model, real.videos)
    words = features.clip_text_features(loaded["clip"].model, real.captions)
    assert found["clip"].value == pytest.approx(features.cosines(frames, words).mean(), abs=1e-5)
    distances = {}
    for name, see in {"videomae": features.videomae_features, "clip_fid": features.clip_image_features}.items():
        network = loaded["clip" if name == "clip_fid" else name].model
        distances[name] = frechet_distance(see(network, reference.videos), see(network, real.videos))
    assert {name: found[name].value for name in distances} == pytest.approx(distances, rel=1e-3)
    assert 0 < found["consistency"].value < 1
    silent = RealData("noise", [item | {"caption": ""} for item in items], items)
    found = floors(silent, ["clip", "consistency"], num=4, networks=loaded)["real"]
    assert np.isnan(found["clip"].value)
    assert found["consistency"].value > 0


def test_fvd_is_of_the_logits_of_i3d(tmp_path):
    save_file(i3d_weights(8), tmp_path / "i3d.safetensors")
    mesh = make_mesh(devices=jax.devices()[:1])
    data = RealData("noise", [], [])
    loaded = load_networks(["fvd", "fvd_infinite"], data, {"i3d": tmp_path / "i3d.safetensors"}, mesh=mesh)
    rows = EXTRACTORS["i3d"].rows(Clips(clips("i3d, small", 1, 9, 28, 40, 1), ("",)), loaded["i3d"].model)
    assert relative(rows["fvd"], np.load(GOLDEN)["i3d, small"]) < 1e-5


def test_what_is_drawn_beside_what_is_known_is_compared_with_the_clip(pipeline, data, tmp_path):
    save_file(lpips_weights("vgg"), tmp_path / "lpips.safetensors")
    known, names = "extension, half known", default_metrics(data, ["lpips"], "extension, half known")
    assert names == ("digit_kept", "position_error", "within_pixel", "psnr", "ssim", "lpips")
    mesh = make_mesh(devices=jax.devices()[:1])
    networks = load_networks(names, data, {"lpips": tmp_path / "lpips.safetensors"}, mesh=mesh)
    how = {"num": 6, "batch_size": 4, "known": known, "networks": networks}
    found = floors(data, names, **how)
    real = read_clips(data, 6).videos
    assert found["real"]["psnr"].value == pytest.approx(100)
    assert (found["real"]["ssim"].value, found["real"]["lpips"].value) == (pytest.approx(1), 0)
    new, copied = metrics.in_range(real[:, 4:]), metrics.in_range(real[:, [3] * 4])
    distances = features.lpips_distances(networks["lpips"].model, copied, new)
    expected = {"psnr": temporal.psnr(copied, new), "ssim": temporal.ssim(copied, new), "lpips": distances}
    for name, rows in expected.items():
        assert found["no network"][name].value == pytest.approx(rows.mean(), rel=1e-4)
    near(score(copier(pipeline, real), data, names, **how), found["real"])


def test_without_a_network_a_digit_is_as_far_off_as_it_has_moved(data):
    """A digit moves by a pixel a frame: 1, 2, 3 and 4 pixels from the last known frame of eight."""
    for known, distance in {"extension, half known": 2.5, "image to video, with the caption": 4}.items():
        found = floors(data, ["position_error"], num=4, known=known)["no network"]
        assert found["position_error"].value == pytest.approx(distance, abs=0.01)


def test_super_resolution_and_video_to_video_are_drawn_from_the_clips(pipeline, data):
    how = {"num": 6, "batch_size": 4}
    config = default_config()
    config.sample.steps, config.objective.prediction = 1, "x"
    config.model.network = {"kind": "unet", "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 8, "patch": 4}
    config.known.update(mixture={"everything": 1.0}, downsample=2)
    larger = pipeline_of(config)
    drawn = score(larger, data, ["psnr"], known="super-resolution by 2", **how)
    cubic = floors(data, ["psnr"], known="super-resolution by 2", **how)["no network"]
    assert drawn["psnr"].value < 15 < cubic["psnr"].value < 25
    with pytest.raises(InputError, match="cannot enlarge a video by 2"):
        score(pipeline, data, ["psnr"], known="super-resolution by 2", **how)

    near_clips, far = (
        score(pipeline, data, ["psnr"], known="video to video", strength=strength, **how)["psnr"].value
        for strength in (0.01, 0.9)
    )
    assert near_clips > far
    with pytest.raises(InputError, match="strength=1 must be below 1 where known='video to video'"):
        score(pipeline, data, ["psnr"], known="video to video", **how)


def test_names_are_checked():
    assert check_metrics(["warping", "jerk", "jerk"]) == ("warping", "occluded", "jerk")
    with pytest.raises(InputError, match="metric 'fdv' is unknown; did you mean fvd\\? known are digit, direction"):
        check_metrics(["jerk", "fdv"])
    with pytest.raises(InputError, match="metric 'psychedelic' is unknown; known are"):
        check_metrics(["psychedelic"])
    with pytest.raises(InputError, match="ssim compares drawn clips with true clips: known must be one of extension"):
        check_metrics(["ssim"])
    with pytest.raises(InputError, match="must name some of digit"):
        check_metrics([])


@pytest.mark.parametrize("name", ["fvd", "fvd_infinite", "videomae", "clip", "clip_fid", "lpips"])
def test_missing_weights_are_said_with_where_they_are_published(name, data):
    need = METRICS[name].extractor
    places = {"i3d": "flateon/FVD-I3D-torchscript", "videomae": "OpenGVLab", "clip": "openai/clip-vit-large-patch14"}
    places["lpips"] = "richzhang/PerceptualSimilarity"
    with pytest.raises(InputError, match=f"{name} needs weights, --{need}=<path>: .*{places[need]}"):
        load_networks([name], data)


def test_what_cannot_be_measured_is_refused(pipeline, data, sources, tmp_path):
    other = dataclasses.replace(data, judge=None, name="videos, test", memory={})
    for name in ("digit", "novelty"):
        with pytest.raises(InputError, match=f"{name} needs moving digits, one in a clip; the data is videos, test"):
            score(pipeline, other, [name], num=4)
    with pytest.raises(InputError, match="num=298 needs 298 real clips; digits has 297"):
        score(pipeline, data, ["flicker"], num=298)
    with pytest.raises(InputError, match="num=201 needs 201 real clips; digits has 200"):
        score(pipeline, data, ["digits_fvd"], num=201)
    one = dataclasses.replace(data, reference=data.held_out, memory={})
    with pytest.raises(InputError, match="num=149 needs 298 real clips, half of them as the reference"):
        floors(one, ["flicker"], num=149)
    large = changed(pipeline, shape=(8, 32, 32, 1))
    with pytest.raises(InputError, match=r"digits: real clips are 8×16×16×1 \(T×H×W×C\), generated ones 8×32×32×1"):
        score(large, data, ["flicker"], num=4)
    with pytest.raises(InputError, match="num=1 must be at least 2"):
        score(pipeline, data, ["flicker"], num=1)
    with pytest.raises(InputError, match="stepz: no such setting"):
        score(pipeline, data, ["flicker"], num=4, stepz=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/videos-000000-\w+.npz cannot be written: File exists"):
        score(pipeline, data, ["flicker"], num=4, folder=tmp_path / "file")
