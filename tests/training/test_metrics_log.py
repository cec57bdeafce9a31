"""The numbers of a run, line by line; `test_loop` has them in a run that is stopped and gone on with."""

import jax.numpy as jnp

from vdm_jax.config import default_config
from vdm_jax.training.metrics_log import MetricsLog


def test_a_line_tells_the_most_that_was_skipped_and_the_rate_of_its_last_update(tmp_path):
    log = MetricsLog(tmp_path, default_config(), 0)
    for skipped, in_a_row in ((0, 0), (1, 1), (2, 2), (3, 3), (3, 0)):
        step = {"loss": 1.0, "grad_norm": 1.0, "skipped": skipped, "skipped_in_a_row": in_a_row}
        log.add({name: jnp.asarray(value) for name, value in step.items()})
    values = log.write(5, lambda step: 10 * step)
    log.close()
    assert (values["skipped"], values["skipped_in_a_row"], values["learning_rate"]) == (3, 3, 10)
