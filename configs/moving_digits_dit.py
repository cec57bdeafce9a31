"""Text to video on moving digits with a spacetime diffusion transformer."""

from configs.moving_digits import get_config as unet_config


def get_config():
    """Returns the config."""
    config = unet_config()
    config.unlock()
    config.process = dict(name="flow")
    config.objective = dict(prediction="flow", time_sampling="logit_normal", mean=0.0, std=1.0)
    config.model.network = dict(kind="dit", width=128, depth=4, heads=4, patch=2, patch_time=2, cross="none")
    config.lock()
    return config
