"""Latte (Ma et al. 2024, arXiv 2401.03048): spacetime diffusion transformers conditioned on a class, or on nothing.

    python experiments/train.py --config=configs/latte.py:moving_digits_class --workdir=runs/latte_digits
    python experiments/evaluate.py --run=runs/latte_digits --num=200 --guidance=1,3 --steps=50
    python experiments/train.py --config=configs/latte.py:ucf101,stable-diffusion-v1-5 --workdir=runs/latte_ucf101 \
        --config.data.data_dir=datasets --config.mesh.data=1 --config.mesh.fsdp=8

The argument is a row:

    row                    what                                                       parameters
    ucf101                 101 classes, 256×256×16, in latents, TFDS                  675,108,880
    sky                    unconditional, 256×256×16, in latents, a folder of videos  673,663,120
    moving_digits_class    10 digits × 4 directions, 16×16×8, pixels                  484,420
    latte_1                tunes the published Latte-1 with texts, 512×512×16         1,057,246,880

A comma and a folder after the row replace the folder of published parts, as in `ucf101,my/stable-diffusion`.

Recipe: Latte-XL/2, 14 pairs of blocks along space and time (28 in all) of width 1152 with 16 heads, adaLN-zero in each
    block, patches of 2×2 latents of one frame, a code of the frame before the first block along time. Noise prediction
    with 1000 steps of linear β; AdamW with a constant rate of 1e-4, batches of 40 (5 on each of 8 GPUs), clipping at
    0.1, an average with 0.9999, mirrored clips. The codec is any Stable Diffusion folder's.
Differences: no learned variance (18,448 parameters); the gradient is clipped from the first step, not from the
    100,000th (sky: 20,000th); a clip of ucf101 has 16 frames in a row, not every third, since some of its videos have
    fewer than 46; the vector of a class passes through a matrix.
Classes: a caption or a prompt belongs to the class whose name it holds: `--prompt=ApplyEyeMakeup`. The captions of
    TFDS' ucf101 are these names.

Hardware and time: ucf101, sky and latte_1 have never been run at full size; no time and no score is claimed.
    moving_digits_class was run for 20 steps, at 16 videos a second on 2 CPU cores with other work: its 1200 steps take
    20 minutes there. It was never trained to its end (November 2026).
The paper's figures for 16 frames of 256×256: FVD 477.97 (UCF-101), 59.82 (SkyTimelapse), with 673.68 M parameters.
"""

from pathlib import Path

from vdm_jax.config import default_config, read_file

UCF101 = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball BasketballDunk
BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag
BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen Diving Drumming Fencing
FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut Hammering HammerThrow HandstandPushups
HandstandWalking HeadMassage HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack
JumpRope Kayaking Knitting LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars PizzaTossing
PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar PlayingTabla PlayingViolin
PoleVault PommelHorse PullUps Punch PushUps Rafting RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard
Shotput SkateBoarding Skiing Skijet SkyDiving SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing
TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars VolleyballSpiking WalkingWithDog
WallPushups WritingOnBoard YoYo
""".split()  # noqa: SIM905
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# "3 left" is the class of "the digit 3 moves to the left" and of "a three going left".
DIGITS_THAT_MOVE = tuple(
    (f"{number} {direction}", rf"({number}|{word})\b.*\b{direction}(wards)?")
    for number, word in enumerate(DIGITS)
    for direction in ("left", "right", "up", "down")
)


def get_config(argument: str = "ucf101"):
    """Returns the config of a row, with the default folder of published parts or another."""
    row, *folder = argument.split(",", 1)
    rows = {"ucf101": ucf101, "sky": sky, "moving_digits_class": moving_digits_class, "latte_1": latte_1}
    if row not in rows:
        raise ValueError(f"row {row!r} must be one of {', '.join(rows)}")
    return rows[row](*folder)


def network(**sizes) -> dict:
    """Returns the arguments of a Latte of some sizes; `depth` counts pairs of blocks."""
    return dict(kind="dit", modulation="block", qk_norm=None, time_position="code", cross="none", patch=2) | sizes


def sky(folder: str = "stable-diffusion-v1-5"):
    """Returns the config of unconditional videos in latents."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 1_000_000, 40, 0.9999
    config.data.update(dict(name="folder", data_dir="videos", frames=16, height=256, width=256, channels=3, stride=3))
    config.data.update(dict(flip=True, num_workers=8))
    config.model.dtype = "bfloat16"
    config.model.network = network(width=1152, depth=14, heads=16, remat="full")
    config.model.text = dict(kind="none")
    config.model.codec = dict(folder=folder)
    config.process = dict(name="ddpm")
    config.objective = dict(prediction="eps")
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-4,
        warmup=0,
        decay="constant",
        final=0.0,
        clip=0.1,
        options=dict(weight_decay=0.0),
    )
    config.checkpoint = dict(every=10_000, keep=3, keep_every=100_000)
    config.sample.update(dict(steps=250, eta=1.0, guidance=1.0, clip=None))
    config.lock()
    return config


def ucf101(folder: str = "stable-diffusion-v1-5"):
    """Returns the config of videos of a class in latents."""
    config = sky(folder)
    config.data.update(dict(name="ucf101", data_dir="datasets", stride=1))
    with config.unlocked():
        config.model.text = dict(kind="classes", classes=tuple(UCF101), width=1152)
    config.sample.guidance = 7.0
    return config


def moving_digits_class():
    """Returns the config of tiny videos of a digit and a direction, in pixels."""
    config = read_file(Path(__file__).with_name("moving_digits.py"))
    with config.unlocked():
        config.steps = 1200
        config.model.network = network(width=64, depth=3, heads=2)
        config.model.text = dict(kind="classes", classes=DIGITS_THAT_MOVE, width=64)
        config.process = dict(name="ddpm")
        config.objective = dict(prediction="eps")
    config.sample.update(dict(steps=50, eta=1.0))
    return config


def latte_1(folder: str = "Latte-1"):
    """Returns the config of tuning the published network, with its text encoder and autoencoder."""
    config = sky()
    config.steps, config.batch_size = 10_000, 8
    config.data.update(dict(height=512, width=512, stride=1, fps=8.0, flip=False))
    with config.unlocked():
        config.model.network = dict(folder=folder, remat="full")
        config.model.text = dict(folder=folder, length=120, clean="lower")
        config.model.codec = dict(folder=folder)
        config.process = dict(name="cosine")  # the folder brings its own
    config.optimizer.update(dict(learning_rate=1e-5, warmup=100, clip=1.0))
    config.checkpoint.update(dict(every=1_000, keep_every=0))
    config.sample.update(dict(steps=50, guidance=7.5))
    return config
