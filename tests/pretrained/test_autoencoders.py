"""The published autoencoders without PyTorch: against answers that were kept, in chunks and tiles, and to disk."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.pretrained.networks import numbers
from tests.pretrained.tiny_autoencoders import AUTOENCODERS, abstract_of, compiled, inputs, tensors_of
from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import decode_in_chunks
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding
from vdm_jax.pretrained.folder import write_folder
from vdm_jax.pretrained.load import load_codec
from vdm_jax.pretrained.names import torch_tensors
from vdm_jax.pretrained.parts.autoencoders import load_autoencoder, translate

GOLDEN = Path(__file__).parent / "golden_autoencoders.npz"  # made by make_golden_autoencoders.py
IMAGE, IN_TIME = (AUTOENCODERS[name][0] for name in ("image", "in time"))
FILE = "diffusion_pytorch_model.safetensors"


def relative(found, kept):
    assert found.shape == kept.shape
    return np.linalg.norm(found - kept) / np.linalg.norm(kept)


@pytest.fixture
def folder(tmp_path):
    """Writes the folder of a config, with changes to its tensors."""

    def write(config, change=lambda tensors: tensors, name="model"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(change(tensors_of(config)), folder / FILE)
        return folder

    return write


@pytest.mark.parametrize("name", ["image, three levels, odd sizes", "in time"])
def test_decoded_is_what_was_kept(name, folder):
    loaded, (_, latents) = load_autoencoder(folder(AUTOENCODERS[name][0])), inputs(name)
    assert relative(compiled(loaded.graphdef)[1](loaded.params, latents), np.load(GOLDEN)[f"{name}/video"]) < 1e-5


def test_encoded_is_what_was_kept(folder):
    name = "image, three levels, odd sizes"  # the encoder is the same in both families
    loaded, kept, (video, _) = load_autoencoder(folder(AUTOENCODERS[name][0])), np.load(GOLDEN), inputs(name)
    encode, _ = compiled(loaded.graphdef)
    mean, log_variance = encode(loaded.params, video)
    assert relative(mean, kept[f"{name}/mean"]) < 1e-5
    assert relative(log_variance, kept[f"{name}/log_variance"]) < 1e-5
    loaded.params["quant"]["bias"] += 1000  # of the log variance, too, which is clipped
    assert (encode(loaded.params, video)[1] == 20).all()


def test_a_folder_is_loaded_into_shards_and_saved_as_it_was(folder, tmp_path):
    written = folder(IN_TIME)
    loaded = load_autoencoder(written, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    kernel = loaded.params["decoder"]["middle"]["attention"]["attention"]["q"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 32)
    assert load_codec(written)[0].scale == 0.18215
    write_folder(tmp_path / "again", torch_tensors(loaded.params, translate(loaded.config)[1]), loaded.config)
    saved, again = (load_file(f / FILE) for f in (written, tmp_path / "again"))
    assert saved.keys() == again.keys()
    assert all((saved[name] == again[name]).all() for name in saved)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == IN_TIME


def test_a_pipeline_folder_is_read_in_its_vae(folder, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    folder(IMAGE | {"scaling_factor": 0.5}, name="vae")
    assert load_codec(tmp_path)[0].scale == 0.5


def test_the_old_spelling_of_the_attention_is_read(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def spell(extra, tensors):
        def one(name, tensor):
            for new, part in old.items():
                if new in name:
                    return name.replace(new, part), tensor.reshape(*tensor.shape, *(extra if tensor.ndim == 2 else ()))
            return name, tensor

        return dict(one(*item) for item in tensors.items())

    ours = load_autoencoder(folder(IMAGE)).params
    for extra in ((), (1, 1)):  # matrices, and convolutions of one pixel
        older = load_autoencoder(folder(IMAGE, functools.partial(spell, extra)))
        jax.tree.map(np.testing.assert_array_equal, ours, older.params)


def test_frames_and_batch_may_lie_on_several_devices(folder):
    mesh = make_mesh(data=2, context=2, fsdp=2)
    loaded, (_, latents) = load_autoencoder(folder(IN_TIME), mesh=mesh), inputs("in time")
    latents = jax.device_put(jnp.tile(latents, (2, 1, 1, 1, 1)), batch_sharding(mesh))
    decode = jax.jit(lambda params, z: nnx.merge(loaded.graphdef, params).decode(z, ActivationLayout(mesh)))
    found = np.asarray(decode(loaded.params, latents))
    assert relative(found, np.tile(np.load(GOLDEN)["in time/video"], (2, 1, 1, 1, 1))) < 1e-5


def test_sixteen_bits_answer_in_float32():
    graphdef, params = nnx.split(abstract_of(IMAGE, dtype="bfloat16"))
    encode, decode = compiled(graphdef)
    video, latents = inputs("image")
    for answer in (*jax.eval_shape(encode, params, video), jax.eval_shape(decode, params, latents)):
        assert answer.dtype == jnp.float32


# --------------------------------------------------------------------------------------------------------- chunks


def separate(latents):
    """A decoder whose frames see all others of their chunk."""
    return latents - latents.mean(1, keepdims=True)


def test_chunks_do_not_see_each_other_and_the_last_may_be_shorter():
    latents, lengths = jnp.asarray(numbers("z", (2, 7, 2, 2, 3))), []

    def decode(part):
        lengths.append(part.shape[1])
        return separate(part)

    video = decode_in_chunks(decode, latents, 3)
    assert lengths == [3, 3, 1]
    expected = np.concatenate([separate(latents[:, i : i + 3]) for i in (0, 3, 6)], 1)
    np.testing.assert_allclose(video, expected, atol=1e-6)
    np.testing.assert_allclose(decode_in_chunks(separate, latents, 9), separate(latents), atol=1e-6)
    with pytest.raises(InputError, match="chunk=0 must be at least 1"):
        decode_in_chunks(separate, latents, 0)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: a for n, a in t.items() if n != "quant_conv.bias"}, r"1 missing \(quant_conv.bias\)"),
        (lambda t: t | {"more": np.ones(1)}, r"1 unexpected \(more\)"),
        (lambda t: t | {"quant_conv.bias": np.ones(3)}, r"1 misshapen \(quant_conv.bias \(3,\), not \(8,\)\)"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(folder, change, message):
    with pytest.raises(InputError, match=message):
        load_autoencoder(folder(IMAGE, change))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IMAGE | {"_class_name": "VQModel"}, "_class_name='VQModel' must be one of AutoencoderKL, "),
        (IMAGE | {"act_fn": "gelu"}, "act_fn='gelu' is not implemented; it must be 'silu'"),
        (IMAGE | {"shift_factor": 0.1}, "shift_factor=0.1 is not implemented; it must be None"),
        (IMAGE | {"mid_block_add_attention": False}, "mid_block_add_attention=False is not implemented"),
        (IMAGE | {"something": 1}, "AutoencoderKL: something=1 is not known"),
        (IMAGE | {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "up_block_types=.* it must be"),
        (IMAGE | {"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types=.* it must be .*, 'DownEnc"),
        (IN_TIME | {"use_quant_conv": True}, "TemporalDecoder: use_quant_conv=True is not known"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        translate(config)


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="groups=3 must divide every width, not 8"):
        abstract_of(IMAGE | {"norm_num_groups": 3})
    with pytest.raises(InputError, match="blocks=3 must be 1 or 2 with a decoder in time"):
        abstract_of(IN_TIME | {"layers_per_block": 3})
