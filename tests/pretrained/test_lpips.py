"""LPIPS's files: answers that were kept, the published names, and what is refused."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.pretrained.make_golden_features import GOLDEN, lpips_images, lpips_weights
from tests.pretrained.networks import relative
from vdm_jax.errors import InputError
from vdm_jax.models.judges.lpips import PLANS
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.parts.lpips import load_lpips


@pytest.fixture
def write(tmp_path):
    def one(tensors):
        save_file(tensors, tmp_path / "lpips.safetensors")
        return tmp_path / "lpips.safetensors"

    return one


@pytest.mark.parametrize("kind", PLANS)
def test_answers_are_those_that_were_kept(kind, write):
    network = load_lpips(write(lpips_weights(kind)), mesh=make_mesh(devices=jax.devices()[:1]))
    distance = jax.jit(lambda params, a, b: nnx.merge(network.graphdef, params)(a, b))
    a, b = lpips_images()
    kept = np.load(GOLDEN)[f"lpips, {kind}"]
    assert relative(distance(network.params, a, b), kept) < 1e-5
    assert relative(distance(network.params, b, a), kept) < 1e-5
    np.testing.assert_array_equal(distance(network.params, a, a), [0, 0])


def test_names_are_the_published_ones():
    """Some, written out, at full width."""
    shapes = {name: array.shape for name, array in lpips_weights("alex", 64).items()}
    assert shapes["features.0.weight"] == (64, 3, 11, 11)
    assert shapes["features.3.weight"] == (192, 64, 5, 5)
    assert shapes["features.10.bias"] == (256,)
    assert shapes["lin1.model.1.weight"] == (1, 192, 1, 1)
    assert len(shapes) == 5 * 2 + 5
    shapes = {name: array.shape for name, array in lpips_weights("vgg", 64).items()}
    assert shapes["features.2.weight"] == (64, 64, 3, 3)
    assert shapes["features.17.weight"] == (512, 256, 3, 3)
    assert shapes["features.28.bias"] == (512,)
    assert shapes["lin4.model.1.weight"] == (1, 512, 1, 1)
    assert len(shapes) == 13 * 2 + 5


def test_other_files_are_refused(write, tmp_path):
    with pytest.raises(InputError, match="none is not a file; LPIPS is published as alexnet-owt"):
        load_lpips(tmp_path / "none")
    (tmp_path / "alex.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be a safetensors file; experiments/convert_lpips\.py makes one"):
        load_lpips(tmp_path / "alex.pth")
    weights = lpips_weights("alex")
    with pytest.raises(InputError, match=r"lin0\.model\.1\.weight must be there, not only features\.0\.bias"):
        load_lpips(write({name: array for name, array in weights.items() if "features" in name}))
    del weights["features.6.bias"]
    with pytest.raises(InputError, match=r"1 missing \(features\.6\.bias\)"):
        load_lpips(write(weights))
