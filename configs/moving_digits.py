from vdm_jax.configuration import default_config
def get_config():
    config = default_config()
    config.steps = 3000
    config.model.unet = dict(channels=32, multipliers=(1, 2), blocks=1, patch=2, head_size=32, time_conv=True, space_attention=(False, True))
    return config
