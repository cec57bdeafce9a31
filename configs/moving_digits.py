from vdm_jax.configuration import default_config
def get_config():
    config = default_config()
    config.steps = 1800
    config.model.unet = dict(channels=128, multipliers=(1,), blocks=1, patch=4, patch_time=2, kernel=1, head_size=32, time_conv=True, context="none")
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 100
    config.ema = 0.995
    config.data.data_dir = "/tmp/w/data"
    config.checkpoint.every = 600
    return config
