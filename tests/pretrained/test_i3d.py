"""I3D's files: answers that were kept, two spellings of one network, and what is refused."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.pretrained.make_golden_features import GOLDEN, I3D_FRAMES, I3D_WIDTH, clips, i3d_weights
from tests.pretrained.networks import relative
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.parts.i3d import KINETICS_I3D_PYTORCH, load_i3d


@pytest.fixture
def write(tmp_path):
    def one(tensors, name="i3d.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return one


def test_answers_are_those_that_were_kept(write):
    network = load_i3d(write(i3d_weights(I3D_WIDTH)), mesh=make_mesh(devices=jax.devices()[:1]))
    graphdef = network.graphdef
    given = clips("i3d", 1, I3D_FRAMES, 224, 224, 3)
    found = jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(network.params, given)
    kept = np.load(GOLDEN)
    assert relative(found.logits, kept["i3d, logits"]) < 1e-5
    assert relative(found.pooled, kept["i3d, pooled"]) < 1e-5


def test_both_spellings_are_read(write):
    one = load_i3d(write(i3d_weights(8)))
    counted = {"mixed_3b.branch_0.batch3d.num_batches_tracked": np.int64([3])}
    other = load_i3d(write(i3d_weights(8, KINETICS_I3D_PYTORCH) | counted))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_names_are_the_published_ones():
    """A few of each spelling, written out; the converters' tests compare all tensors."""
    shapes = {name: array.shape for name, array in i3d_weights(64).items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_2c_3x3.bn.running_var"] == (192,)
    assert shapes["Mixed_4f.b2b.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.bn.weight"] == (128,)
    assert shapes["Mixed_3b.b0.conv3d.weight"] == (64, 192, 1, 1, 1)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert shapes["logits.conv3d.bias"] == (400,)
    assert len(shapes) == 57 * 5 + 2
    shapes = {name: array.shape for name, array in i3d_weights(64, KINETICS_I3D_PYTORCH).items()}
    assert shapes["conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["conv3d_2c_3x3.batch3d.running_mean"] == (192,)
    assert shapes["mixed_4f.branch_2.1.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert shapes["mixed_4f.branch_1.0.batch3d.bias"] == (160,)
    assert shapes["mixed_5c.branch_3.1.batch3d.weight"] == (128,)
    assert shapes["mixed_3b.branch_0.conv3d.weight"] == (64, 192, 1, 1, 1)
    assert shapes["conv3d_0c_1x1.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert len(shapes) == 57 * 5 + 2


def test_the_epsilon_is_the_callers(write):
    path = write(i3d_weights(8))
    for given, expected in (({}, 1e-3), ({"epsilon": 1e-5}, 1e-5)):
        network = load_i3d(path, **given)
        assert nnx.merge(network.graphdef, network.params).mixed[8].b3b.norm.epsilon == expected


def test_other_files_are_refused(write, tmp_path):
    with pytest.raises(InputError, match=r"none is not a file; I3D is published as i3d_torchscript\.pt \(flateon/FVD-"):
        load_i3d(tmp_path / "none")
    (tmp_path / "i3d.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be a safetensors file; experiments/convert_i3d\.py makes one"):
        load_i3d(tmp_path / "i3d.pt")
    with pytest.raises(InputError, match=r"does not hold I3D: .* must be there, not only a, b"):
        load_i3d(write({"a": np.ones(1), "b": np.ones(1)}))
    weights = i3d_weights(8)
    with pytest.raises(InputError, match="does not hold I3D"):
        load_i3d(write({"Conv3d_1a_7x7.conv3d.weight": weights["Conv3d_1a_7x7.conv3d.weight"]}))
    del weights["Mixed_4b.b0.bn.bias"]
    weights |= {"new": np.ones(1), "Mixed_4c.b0.bn.bias": np.ones(3)}
    with pytest.raises(InputError, match=r"1 missing \(Mixed_4b\.b0\.bn\.bias\); 1 unexpected \(new\); 1 misshapen"):
        load_i3d(write(weights))
