"""What a config file may set."""

import pytest

from vdm_jax.configuration import check_keys, conditioning_of, default_config, process_of
from vdm_jax.errors import InputError


def test_a_group_of_keyword_arguments_takes_a_further_one():
    config = default_config()
    config.process.shift = 2.0
    assert process_of(config).shift == 2.0


def test_all_other_keys_are_those_that_there_are():
    config = default_config()
    with pytest.raises(AttributeError, match="stepz"):
        config.stepz = 3
    with pytest.raises(AttributeError, match="evry"):
        config.checkpoint.evry = 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("checkpoint", {"every": 500}, "config.checkpoint.keep is not there: a group that is given anew needs all"),
        ("optimizer", dict(default_config().optimizer) | {"weight_decay": 0.1}, "config.optimizer.weight_decay is not"),
        ("mesh", {"data": 1, "fsdp": 1, "context": 1, "tensor": 1, "expert": 2}, "config.mesh.expert is not known"),
    ],
)
def test_a_group_that_is_given_anew_has_the_keys_of_the_old(key, value, message):
    config = default_config()
    check_keys(config)
    config[key] = value
    with pytest.raises(InputError, match=message):
        check_keys(config)


def test_a_config_that_lacks_a_group_is_refused():
    config = default_config().unlock()
    del config.profile
    with pytest.raises(InputError, match=r"config\.profile is not there"):
        check_keys(config)
    config.profile = 3
    with pytest.raises(InputError, match=r"config\.profile=3 must be a group with the keys start, steps"):
        check_keys(config)


def test_frames_share_no_noise_with_stills():
    config = default_config()
    config.process.frame_correlation = 0.5
    assert process_of(config).frame_correlation == 0.5
    config.data.joint_images = 2
    with pytest.raises(InputError, match=r"process.frame_correlation=0.5 must be 0 with data.joint_images=2"):
        process_of(config)
    config.process.frame_correlation = 1.0
    with pytest.raises(InputError, match=r"frame_correlation=1.0 must be at least 0 and below 1"):
        process_of(config)


@pytest.mark.parametrize(("name", "value"), [("noise", 0.3), ("downsample", 2)])
def test_what_is_said_of_the_known_is_of_a_network_that_is_told(name, value):
    config = default_config()
    assert conditioning_of(config) is None
    config.known[name] = value
    with pytest.raises(InputError, match=rf"known.{name}={value} needs known.mixture"):
        conditioning_of(config)
    config.known.mixture = {"first": 1.0}
    assert getattr(conditioning_of(config), name) == value
