"""The published U-Nets without PyTorch: against answers that were kept, and what folders are refused."""

import functools
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.pretrained.networks import UNETS, inputs, module_of, relative, tensor
from tests.pretrained.pipelines import one_level
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.rngs import Keys
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.families.animatediff import new_adapter, with_motion
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.names import load_params, torch_shapes
from vdm_jax.pretrained.networks import read_network, tensors_of, write_network

GOLDEN = Path(__file__).parent / "golden.npz"  # made by make_golden.py
IMAGE, MOTION, SVD = (UNETS[name][0] for name in ("image", "animatediff", "svd"))


@functools.cache
def network(name, **options):
    """The jitted network of the table with the weights of the names; compiled once for all tests."""
    graphdef, params = nnx.split(module_of(UNETS[name][0], **options))
    call = jax.jit(lambda params, given: nnx.merge(graphdef, params)(**given))
    return functools.partial(call, nnx.to_pure_dict(params))


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of a config, with changes to its tensors."""

    def write(config, change=None, name="model"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        arguments, naming = translate(config)
        abstract = nnx.split(nnx.eval_shape(lambda: UNet(**arguments, rngs=Keys(0))))[1]
        shapes = torch_shapes(nnx.to_pure_dict(abstract), naming)
        tensors = {name: tensor(name, shape) for name, shape in shapes.items()}
        tensors = change(tensors) if change else tensors
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("name", ["image, linear", "modelscope, odd sizes", "animatediff", "svd"])
def test_answers_are_those_that_were_kept(name):
    assert relative(network(name)(inputs(name)), np.load(GOLDEN)[name]) < 1e-5


def test_a_folder_is_loaded_into_shards_and_saved_as_it_was(folder, tmp_path):
    written = folder(SVD)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    unet = read_network(written, mesh=mesh)
    kernel = unet.params["down"][0][0]["space_attention"]["blocks"][0]["attention1"]["q"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 16)
    write_network(unet, tmp_path / "again")
    saved, again = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (written, tmp_path / "again"))
    assert saved.keys() == again.keys()
    assert all((saved[name] == again[name]).all() for name in saved)
    given = inputs("svd")
    placed = functools.partial(network("svd").func, unet.params)
    np.testing.assert_allclose(placed(given), network("svd")(given), atol=1e-5)


def test_a_sharded_index_and_a_pipeline_folder_are_read(folder, tmp_path):
    whole = folder(IMAGE, name="unet")
    (tmp_path / "model_index.json").write_text("{}")
    tensors = tensors_of(read_network(whole))
    (whole / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, whole / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (whole / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    again = tensors_of(read_network(tmp_path))
    assert again.keys() == tensors.keys()
    assert all((again[name] == tensors[name]).all() for name in names)
    listing = whole / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("index.fp16", "fp16.index"):  # by the version that wrote it
        listing = listing.rename(whole / f"diffusion_pytorch_model.safetensors.{name}.json")
        assert tensors_of(read_network(tmp_path)).keys() == tensors.keys()
    (whole / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lists b\.safetensors, which does not exist"):
        read_network(tmp_path)


def test_half_precision_files_become_float32_parameters(folder):
    halved = folder(IMAGE, lambda tensors: {name: t.astype(np.float16) for name, t in tensors.items()})
    params = read_network(halved).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_motion_modules_know_the_order_of_frames_and_may_normalise_each_by_itself():
    given, motion = inputs("animatediff"), network("animatediff")
    assert relative(motion(given | {"z": given["z"][:, ::-1]})[:, ::-1], motion(given)) > 0.01
    assert 0.001 < relative(network("animatediff", per_frame_norm=True)(given), motion(given)) < 1
    long = given | {"z": np.zeros((2, 9, 8, 8, 4), np.float32)}
    with pytest.raises(InputError, match="frames=9 must be at most 8"):
        motion(long)


def test_other_positions_than_the_code_are_refused(folder):
    name = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"
    odd = folder(MOTION, lambda tensors: tensors | {name: np.ones((1, 8, 16), np.float32)})
    with pytest.raises(InputError, match=r"pos_embed.pe is not the sinusoidal code"):
        read_network(odd)


def without(tensors):
    del tensors["conv_in.bias"]
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r"1 missing \(conv_in.bias\)"),
        (lambda t: t | {f"more.{i}": np.ones(1) for i in range(5)}, r"5 unexpected \(more.0, more.1, more.2, …\)"),
        (
            lambda t: t | {"conv_in.bias": np.ones(3, np.float32)},
            r"1 misshapen \(conv_in.bias \(3,\), not \(16,\)\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(folder, change, message):
    with pytest.raises(InputError, match=message):
        read_network(folder(IMAGE, change))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IMAGE | {"_class_name": "UNet1DModel"}, "_class_name='UNet1DModel' must be one of UNet2DConditionModel"),
        (IMAGE | {"act_fn": "gelu"}, "act_fn='gelu' is not implemented; it must be 'silu'"),
        (IMAGE | {"class_embed_type": "timestep"}, "class_embed_type='timestep' is not implemented"),
        (IMAGE | {"something": 1}, "something=1 is not known"),
        (IMAGE | {"layers_per_block": [1, 2]}, r"layers_per_block=\[1, 2\] is not implemented"),
        (IMAGE | {"attention_head_dim": [1, 2, 3]}, "attention_head_dim=.* must be one number, or one for each of 2"),
        (IMAGE | {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D is not implemented"),
        (IMAGE | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "must mirror the way down"),
        (MOTION | {"mid_block_layers": 2}, "mid_block_layers=2 is not implemented; it must be 1"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        translate(config)


def test_an_adapter_must_fit_its_network():
    adapter = {
        "_class_name": "MotionAdapter",
        "block_out_channels": [16, 32],
        "motion_layers_per_block": 1,
        "motion_transformer_layers_per_block": 1,
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": 4,
        "motion_max_seq_length": 8,
        "use_motion_mid_block": True,
    }
    assert translate(with_motion(IMAGE, adapter))[0] == translate(MOTION)[0]
    # Published adapters are older than this key.
    older = {key: value for key, value in adapter.items() if key != "motion_transformer_layers_per_block"}
    assert with_motion(IMAGE, older) == with_motion(IMAGE, adapter)
    two = with_motion(IMAGE, new_adapter({"motion_transformer_layers_per_block": 2}))
    assert {filling["layers"] for filling in translate(two)[0]["time_attention"]["down"]} == {2}
    with pytest.raises(InputError, match=r"block_out_channels=.* is not implemented; it must be .16, 32"):
        with_motion(IMAGE, adapter | {"block_out_channels": [32, 32]})
    with pytest.raises(InputError, match="not UNetMotionModel and MotionAdapter"):
        with_motion(MOTION, adapter)


def test_what_is_no_model_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_network(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        read_network(tmp_path / "empty")
    written = folder(IMAGE)
    file = written / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_network(written)
    file.unlink()
    with pytest.raises(InputError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        read_network(written)
    (written / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"\.bin is a pickle, which can run any code"):
        read_network(written)
    (written / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    with pytest.raises(InputError, match="UNet3DConditionModel: its config must have 'down_block_types'"):
        read_network(written)
    (written / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no _class_name"):
        read_network(written)


def test_an_image_network_with_new_motion_modules_draws_the_same_frames(folder, tmp_path):
    where = folder(IMAGE | one_level("image"))
    one = make_mesh(devices=jax.devices()[:1])
    image = read_network(where, mesh=one)
    video = read_network(where, mesh=one, new_motion={"motion_max_seq_length": 8}, seed=1)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 5, 8, 8, 4)).astype(np.float32)
    tokens = rng.normal(size=(2, 1, 6, IMAGE["cross_attention_dim"])).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(graphdef, params, z):
        text = Text(jnp.asarray(tokens), jnp.ones(tokens.shape[:3], bool), jnp.asarray(tokens[:, :, 0]))
        return nnx.merge(graphdef, params)(z, jnp.float32([500, 20]), Conditions(text))

    frames = [draw(image.graphdef, image.params, z[:, [t]]) for t in range(5)]
    np.testing.assert_allclose(draw(video.graphdef, video.params, z), np.concatenate(frames, 1), atol=1e-5)
    modules = [x for path, x in jax.tree_util.tree_leaves_with_path(video.params) if "time_attention" in str(path)]
    assert sum(bool(np.abs(x).max() > 0) for x in modules) > len(modules) / 2  # only the last matrices are 0
    write_network(video, tmp_path / "video")
    jax.tree.map(np.testing.assert_array_equal, read_network(tmp_path / "video").params, video.params)
    with pytest.raises(InputError, match="motion_heads is no setting"):
        read_network(where, new_motion={"motion_heads": 2})


def test_parameters_take_the_type_that_is_asked_for(folder):
    where = folder(IMAGE)
    half = read_network(where, params_dtype="bfloat16", dtype="bfloat16", mesh=make_mesh(devices=jax.devices()[:1]))
    assert {x.dtype.name for x in jax.tree.leaves(half.params)} == {"bfloat16"}
    given = inputs("image")
    answer = jax.jit(lambda params, given: nnx.merge(half.graphdef, params)(**given))(half.params, given)
    assert answer.dtype == np.float32
    assert relative(np.asarray(answer), np.load(GOLDEN)["image"]) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_tensors_at_a_time_are_on_the_host(folder, dtype):
    """What numpy has at most while they are read, above what is left in the end."""
    where = folder(IMAGE)
    arguments, naming = translate(IMAGE)
    module = nnx.eval_shape(lambda: UNet(**arguments, rngs=Keys(0)))
    sizes = [tensor.nbytes for tensor in load_file(where / "diffusion_pytorch_model.safetensors").values()]
    assert sum(sizes) > 10 * max(sizes)
    load = functools.partial(load_params, module=module, naming=naming, mesh=make_mesh(), where="", dtype=dtype)
    load(Weights(where))  # what is made once for all
    passing = []
    for _ in range(3):  # other tests' threads may allocate meanwhile: the least is what loading needs
        tracemalloc.start()
        params = load(Weights(where))
        left, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        passing.append(most - left)
        assert len(jax.tree.leaves(params)) == len(sizes)
    assert min(passing) < 3 * max(sizes)
