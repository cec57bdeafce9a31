"""Studies and their plans: shared runs, names of results, shards, and bad studies."""

import dataclasses
import functools
from pathlib import Path
from runpy import run_path

import pytest

from vdm_jax.errors import InputError
from vdm_jax.evaluation.metrics import hash_of
from vdm_jax.studies.run_hash import run_hash
from vdm_jax.studies.study import Study, change_base, changed, load_study, make_plan, shard, sweep

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))
READY = sorted((ROOT / "configs" / "ablations").glob("*.py"))


def study_of(arms, **changes):
    how = {"claim": "?", "source": "!", "metrics": ("flicker",), "seeds": (0, 1), "base": tiny["get_config"]()}
    return Study(arms=arms, **how | changes)


def plan_of(arms, tmp_path=Path("nowhere"), **changes):
    return make_plan(study_of(arms, **changes), tmp_path / "runs", tmp_path / "out")


def test_every_arm_has_a_cell_for_every_seed_and_arms_that_train_alike_share_runs():
    arms = {
        "v": {},
        "v, 3 steps": {"sample.steps": 3, "sample.guidance": 1.0},
        "the same": {"objective.weighting": "none"},
        "ε": {"objective.prediction": "eps"},
    }
    plan = plan_of(arms)
    assert [(cell.arm, cell.seed) for cell in plan.cells] == [(arm, seed) for seed in (0, 1) for arm in arms]
    v, fewer, same, eps = plan.cells[:4]
    assert v.run is fewer.run is same.run
    assert v.run.config.seed == 0
    assert len(plan.runs) == 4
    assert {v.run.name, eps.run.name}.isdisjoint(cell.run.name for cell in plan.cells[4:])
    assert v.run.folder == Path("nowhere/runs") / run_hash(v.run.config)
    assert (v.settings["steps"], fewer.settings["steps"], fewer.settings["guidance"]) == (2, 3, 1.0)
    assert eps.run.config.objective.prediction == "eps"
    assert v.run.recipe == plan.cells[4].run.recipe != eps.run.recipe
    files = {cell.file for cell in (*plan.cells, plan.floors)}
    assert len(files) == 9


def test_a_result_is_found_again_by_all_that_it_depends_on_and_by_nothing_else():
    arms = {"v": {}}
    (one,) = plan_of(arms, seeds=(0,)).cells
    again = plan_of(arms | {"ε": {"objective.prediction": "eps"}}, claim="another").cells[0]
    assert one.file == again.file
    config = tiny["get_config"]()
    config.log_every = 7
    assert plan_of(arms, base=config).cells[0].file == one.file
    config.sample.steps = 5
    others = [
        plan_of(arms, base=config),
        plan_of(arms, num=9),
        plan_of(arms, metrics=("jerk",)),
        plan_of(arms, seeds=(3,)),
    ]
    assert len({one.file} | {plan.cells[0].file for plan in others}) == 5


def test_results_are_of_the_weights_that_metrics_look_with(tmp_path):
    def files(text):
        (tmp_path / "i3d").write_text(text)
        hash_of.cache_clear()  # the cache does not see the new content
        plan = plan_of({"v": {}}, seeds=(0,), metrics=("fvd",), weights={"i3d": str(tmp_path / "i3d")})
        return plan.cells[0].file, plan.floors.file

    one, other = files("one"), files("other")
    assert set(one).isdisjoint(other)
    assert files("one") == one
    with pytest.raises(InputError, match="nowhere cannot be read: No such file"):
        plan_of({"v": {}}, metrics=("fvd",), weights={"i3d": str(tmp_path / "nowhere")})


def test_floors_of_a_folder_are_of_that_folder():
    def floors(name, place):
        config = tiny["get_config"]()
        config.data.name, config.data.data_dir = name, place
        return plan_of({"v": {}}, base=config).floors.file

    assert floors("folder", "a") != floors("folder", "b")
    assert floors("ucf101", "a") == floors("ucf101", "b")


def test_arms_in_several_modes_share_their_run_and_have_floors_for_every_mode():
    arms = {
        "here": {"known": "first and last frame"},
        "there": {},
        "noised": {"known": "video to video", "sample.strength": 0.5},
    }
    plan = plan_of(arms, seeds=(0,), metrics=("psnr",), known="every second frame")
    assert plan.modes == ("first and last frame", "every second frame", "video to video")
    assert [cell.inputs["known"] for cell in plan.cells] == list(plan.modes)
    assert len(plan.runs) == 1
    alone = plan_of({"there": {}}, seeds=(0,), metrics=("psnr",), known="every second frame")
    assert alone.cells[0].file == plan.cells[1].file
    assert alone.floors.file != plan.floors.file


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_cover_every_run_exactly_once_and_every_cell_with_it(parts):
    plan = plan_of(sweep({"v": {}, "ε": {"objective.prediction": "eps"}}, "sample.steps", {"2": 2, "3": 3}))
    shares = [shard(plan, part, parts) for part in range(1, parts + 1)]
    names = [run.name for share in shares for run in share]
    assert sorted(names) == sorted(plan.runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {cell.run.name for cell in plan.cells} == set(names)
    for part in (0, parts + 1):
        with pytest.raises(InputError, match=rf"--shard={part}/{parts} must be 1/{parts} to {parts}/{parts}"):
            shard(plan, part, parts)


def test_a_run_that_others_begin_with_is_one_for_all_of_them_and_of_their_seed():
    images = {"data.frames": 1, "model.network.time_attention": False, "steps": 7}
    base = tiny["get_config"]()
    base.model.network.patch_time = 1
    arms = {"scratch": {}, "a": {"init_from": images}, "b": {"init_from": images, "ema": 0.5}}
    plan = plan_of(arms, base=base)
    scratch, a, b, _, other, _ = (cell.run for cell in plan.cells)
    assert scratch.begins_with is None
    assert a.begins_with.name == b.begins_with.name != other.begins_with.name
    assert (a.begins_with.config.data.frames, a.begins_with.config.steps, a.config.data.frames) == (1, 7, 4)
    assert Path(a.config.init_from) == a.begins_with.folder
    assert a.begins_with.name not in plan.runs
    assert len({scratch.name, a.name, b.name}) == 3
    with pytest.raises(InputError, match=r"arm 'a': init_from: network/.* has shape .* there and .* here"):
        plan_of({"a": {"init_from": images | {"model.network.channels": 16}}}, base=base)


def test_changes_are_values_or_functions_of_the_base_and_groups_are_replaced():
    config = changed(
        tiny["get_config"](),
        {
            "steps": lambda steps: 2 * steps,
            "known.mixture": {"first": 1.0},
            "process": {"name": "flow"},
            "sample.steps": 9,
            "init_from": {"steps": 1},
        },
    )
    assert (config.steps, config.sample.steps, config.init_from) == (40, 2, "")
    assert config.known.mixture.to_dict() == {"first": 1.0}
    assert config.process.to_dict() == {"name": "flow"}
    assert tiny["get_config"]().steps == 20


def test_the_base_of_a_study_is_changed_with_its_sampler():
    base = change_base(tiny["get_config"](), {"sample.steps": 3, "ema": 0.5})
    assert (base.sample.steps, base.ema) == (3, 0.5)
    assert tiny["get_config"]().sample.steps != 3
    for key, words in {
        "seed": "must be set by --seeds",
        "init_from": "must be set by an arm",
        "stepz": "stepz=3 cannot be set",
    }.items():
        with pytest.raises(InputError, match=words):
            change_base(base, {key: 3})


def test_a_sweep_names_what_it_adds():
    swept = sweep({"a": {"ema": 0.5}, "": {}}, "sample.steps", {"4 steps": 4, "8": 8})
    assert swept == {
        "a, 4 steps": {"ema": 0.5, "sample.steps": 4},
        "a, 8": {"ema": 0.5, "sample.steps": 8},
        "4 steps": {"sample.steps": 4},
        "8": {"sample.steps": 8},
    }


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        ({}, {}, "must have arms and seeds"),
        ({"a": {}}, {"seeds": ()}, "must have arms and seeds"),
        ({"a": {}}, {"seeds": (1, 1)}, "seeds=1,1 must differ"),
        ({"a": {}}, {"seeds": (-1,)}, "seed -1 must be at least 0 and below 2"),
        ({"a": {}}, {"weights": {"i3d": "x"}}, "--i3d=x: none of the metrics flicker needs it"),
        ({"a": {}}, {"metrics": ("fliker",)}, "metric 'fliker' is unknown; did you mean flicker"),
        ({"a": {}}, {"metrics": ("fvd",)}, "fvd needs weights, --i3d=<path>"),
        ({"a": {}}, {"metrics": ("psnr",)}, "psnr compares drawn clips with true clips"),
        ({"a": {}}, {"known": "half"}, "known='half' must be one of: extension, half known"),
        ({"a": {"stepz": 3}}, {}, "arm 'a': stepz=3 cannot be set"),
        ({"a": {"objective": 3}}, {}, "arm 'a': objective=3 cannot be set"),
        ({"a": {"known": "half"}}, {}, "arm 'a': known='half' must be one of: extension, half known"),
        ({"a": {}}, {"known": "video to video"}, "arm 'a': strength=1 must be below 1"),
        (
            {"a": {"known": "super-resolution by 2"}},
            {},
            "arm 'a': respect='replace' cannot enlarge a video by 2",
        ),
        (
            {"a": {"known": "first and last frame"}, "b": {}},
            {"metrics": ("psnr",)},
            "arm 'b': psnr compares drawn clips",
        ),
        ({"a": {}}, {"num": 1}, "num=1 must be at least 2"),
        ({"a": {}}, {"along": "sample.steps"}, "arm 'a': sample.steps=None must be a number"),
        ({"a": {"steps": 0}}, {}, "arm 'a': config.steps=0 must be at least 1"),
        ({"a": {"objective.prediction": "w"}}, {}, "arm 'a': prediction 'w' is unknown"),
        ({"a": {"model.network.blockz": 3}}, {}, "arm 'a': config.model.network does not fit 'unet'"),
        ({"a": {"sample.stepz": 3}}, {}, "arm 'a': sample.stepz: no such setting"),
        ({"a": {"sample.solver": "rk4"}}, {}, "arm 'a': solver 'rk4' is unknown"),
        (
            {"a": {"sample.respect": "concat"}},
            {},
            "arm 'a': respect='concat' needs a run whose network takes known pixels",
        ),
        ({"a": {"data.frames": 6}}, {}, "must equal the base's"),
        ({"a": {"data.joint_images": 1}}, {}, "arm 'a': joint_images=1 needs patch_time=1"),
        ({"a": {"process.frame_correlation": 1.0}}, {}, "frame_correlation=1.0 must be at least 0 and below 1"),
    ],
)
def test_bad_studies(arms, changes, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        plan_of(arms, **changes)


def test_what_an_arm_with_other_data_is_measured_with_is_in_its_name():
    def names(split):
        study = {"a": {}, "b": {"data.split": "test"}}
        base = tiny["get_config"]()
        base.data.split = split
        return [cell.file.name for cell in plan_of(study, seeds=(0,), base=base).cells]

    whole, half = names("train"), names("train[:50%]")
    assert whole[0] != half[0]
    assert whole[1] != half[1]


def test_a_scale_that_a_study_does_not_have_is_refused():
    for path in READY:
        with pytest.raises(InputError, match=r"py:ucf100: 'ucf100' must be one of digits, "):
            load_study(f"{path}:ucf100")


def test_bad_files(tmp_path):
    for text, message in {
        "def get_study(): return 1 / 0": "ZeroDivisionError: division by zero",
        "x = 1": r"KeyError: no get_study\(\)",
        "def get_study(): return 3": r"get_study\(\) must return a Study, not int",
        "import nothing_of_that_name": "ModuleNotFoundError",
    }.items():
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(InputError, match=message):
            load_study(str(tmp_path / "x.py"))
    with pytest.raises(InputError, match=r"none.py does not exist; there are .*x\.py"):
        load_study(str(tmp_path / "none.py"))


OTHER_SCALES = {"dit_or_unet": ("small",), "extension": ("bair",), "modes": ("known", "larger")}
SCALES = [(path, scale) for path in READY for scale in ("", *OTHER_SCALES.get(path.stem, ("ucf101",)))]
SCALES += [(path, "small") for path in READY if path.stem == "time_layers"]


@functools.cache
def ready(path, scale):
    """The study and the plan of its first seed. Cached: networks are traced once for all tests."""
    study = load_study(f"{path}:{scale}" if scale else str(path))
    first = dataclasses.replace(study, seeds=(0,), weights={"i3d": str(path)} if "fvd" in study.metrics else {})
    return study, make_plan(first, Path("runs"), Path("out"))


@pytest.mark.parametrize(("path", "scale"), SCALES, ids=lambda value: getattr(value, "stem", value))
def test_every_ready_study_makes_the_network_and_the_sampler_of_every_arm(path, scale):
    study, plan = ready(path, scale)
    assert study.name == "-".join(filter(None, (path.stem, scale)))
    assert tuple(study.seeds) == (0, 1, 2)
    assert f"configs/ablations/{path.name} --out" in run_path(str(path))["__doc__"]
    assert [cell.arm for cell in plan.cells] == list(study.arms)
    assert len({cell.file for cell in plan.cells}) == len(study.arms)
    if not scale:
        assert study.base.data.name == "moving_digits"


def test_ready_studies_share_their_runs():
    plans = {path.stem: ready(path, "")[1] for path in READY}
    demo = run_hash(run_path(str(ROOT / "configs" / "moving_digits.py"))["get_config"]())
    told = run_hash(run_path(str(ROOT / "configs" / "moving_digits_known.py"))["get_config"]())
    with_demo = {name for name, plan in plans.items() if demo in plan.runs}
    assert with_demo == {"extension", "guidance", "modes", "noise_and_average", "prediction", "sampler"}
    assert told in plans["extension"].runs
    assert list(plans["modes"].runs) == [demo]
    assert list(ready(ROOT / "configs" / "ablations" / "modes.py", "known")[1].runs) == [told]
    assert list(plans["guidance"].runs) == list(plans["sampler"].runs) == [demo]
    both = plans["joint_training"].runs.keys() & plans["image_pretraining"].runs.keys()
    assert len(both) == 2  # from scratch, and from scratch with the compute of eight images
    assert plans["time_layers"].cells[0].run.name in both
