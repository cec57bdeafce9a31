"""What a config file may set."""

import pytest

from vdm_jax.configuration import default_config, process_of


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
