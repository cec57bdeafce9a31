"""Bad input as a user gives it: one line that says what, where, which value, and what would be right."""

from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vdm_jax.build import build, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import write_config
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.training.optimizer import optimizer_of
from vdm_jax.training.state import plan_state, to_parts
from vdm_jax.video import write_image, write_video

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))

TRAIN = ["experiments/train.py", "--config=tests/tiny_config.py", "--config.data.data_dir={videos}"]
NEW = [*TRAIN, "--workdir={new}"]
SAMPLE = ["experiments/sample.py", "--run={run}", "--out={new}"]
EVALUATE = ["experiments/evaluate.py", "--run={run}", "--out={new}"]
ABLATE = ["experiments/ablate.py", "--study=configs/ablations/sampler.py", "--out={new}"]
STUDY = ["experiments/human_eval.py", "make", "--out={new}.html"]

# name: (command, words of its error line)
CASES = {
    "no study": (["experiments/ablate.py"], "--study=configs/ablations/<study>.py and --out=studies/<name> are needed"),
    "unknown study": (
        ["experiments/ablate.py", "--study=configs/ablations/samplers.py", "--out={new}"],
        "samplers.py does not exist; there are configs/ablations/dit_or_unet.py, configs/ablations/extension.py",
    ),
    "unknown scale of a study": ([*ABLATE[:1], "--study={faulty}", "--out={new}"], "KeyError: no get_study()"),
    "unknown key of a study": ([*ABLATE, "--set=stepz=3"], "stepz=3 cannot be set"),
    "key of a study without a value": ([*ABLATE, "--set=steps"], "--set=steps must be key=value"),
    "seeds of a study": ([*ABLATE, "--seeds=a"], "--seeds=a must be integers separated by commas"),
    "seeds of a study twice": ([*ABLATE, "--seeds=1,1"], "seeds=1,1 must differ"),
    "shard out of range": ([*ABLATE, "--shard=3/2"], "--shard=3/2 must be 1/2 to 2/2"),
    "shard without a total": ([*ABLATE, "--shard=2"], "--shard=2 must be part/parts, such as 2/4"),
    "adopted run that does not exist": ([*ABLATE, "--adopt={none}"], "none is no run folder"),
    "adopted run of another training": (
        [*ABLATE, "--adopt={run}"],
        "no run of this study has its training; the nearest",
    ),
    "job of another study": (
        [*ABLATE, "--job=abc"],
        "--job=abc is not a job of this study: was the study changed meanwhile?",
    ),
    "unknown flag": ([*NEW, "--stepz=3"], "stepz"),
    "a word that is no flag": ([*NEW, "steps"], "error: 'steps' is not a flag"),
    "no flags": (["experiments/train.py"], "--config=configs/<experiment>.py and --workdir=runs/<name>"),
    "no config file": (
        ["experiments/train.py", "--config=configs/none.py", "--workdir={new}"],
        "--config=configs/none.py cannot be read: Failed loading config file",
    ),
    "config file with a fault": (["experiments/train.py", "--config={faulty}", "--workdir={new}"], "blocks=x"),
    "config file that needs a missing variable": (
        ["experiments/train.py", "--config={needy}", "--workdir={new}"],
        "needy: KeyError: 'DATA_DIR'",
    ),
    "config file with a group that lacks keys": (
        ["experiments/train.py", "--config={lacking}", "--workdir={new}"],
        "config.sample.clip is missing: a group that is replaced needs all its keys",
    ),
    "unknown key in a config file": (
        ["experiments/train.py", "--config={misspelt}"],
        "'step' is not in the config; did you mean",
    ),
    "no workdir": (TRAIN, "--config=configs/<experiment>.py and --workdir=runs/<name>"),
    "unknown config key": (
        [*NEW, "--config.batchsize=3"],
        "'batchsize' is not in the config; did you mean 'batch_size'?",
    ),
    "unknown nested key": ([*NEW, "--config.data.frame=3"], "'frame' is not in the config; did you mean 'frames'?"),
    "wrong type": ([*NEW, "--config.batch_size=abc"], "flag --config.batch_size=abc: invalid literal"),
    "removed group": (
        [*NEW, "--config.pretrained.folder=x"],
        "error: config.pretrained.folder was removed: use config.model.network.folder",
    ),
    "removed group of the model": (
        [*NEW, "--config.model.unet.channels=8"],
        "error: config.model.unet.channels was removed: use config.model.network.channels",
    ),
    "removed key": (
        [*NEW, "--config.data.caption_dropout=0.1"],
        "error: config.data.caption_dropout was removed: use config.objective.null_probability",
    ),
    "removed group in a config file": (
        ["experiments/train.py", "--config={removed}", "--workdir={new}"],
        "error: config.pretrained.train was removed: use config.train.parts",
    ),
    "run of version 0.1.0": ([*TRAIN, "--workdir={released}"], "was begun by version 0.1.0, which alone can continue"),
    "unknown option of the U-Net": ([*NEW, "--config.model.network.patch_size=2"], "'patch_size' is not in the config"),
    "U-Net without levels": (
        [*NEW, "--config.model.network.multipliers=()"],
        "config.model.network does not fit 'unet'",
    ),
    "unknown kind of network": (
        [*NEW, "--config.model.network.kind=vnet"],
        "model.network.kind='vnet' must be one of unet",
    ),
    "unknown kind of text": ([*NEW, "--config.model.text.kind=words"], "'words' must be one of bytes"),
    "unknown kind of codec": ([*NEW, "--config.model.codec.kind=jpeg"], "model.codec.kind='jpeg' must be 'pixels'"),
    "parts that do not exist": ([*NEW, "--config.train.parts=spase"], "train.parts='spase': the model has no such"),
    "low-rank changes of a new network": ([*NEW, "--config.train.parts=lora"], "train.parts='lora' leaves"),
    "times of known frames without masks": (
        [*NEW, "--config.known.tell=times"],
        "known.tell=times needs known.mixture",
    ),
    "unknown process": ([*NEW, "--config.process.name=sine"], "process 'sine' is unknown; known are cosine"),
    "unknown prediction": ([*NEW, "--config.objective.prediction=w"], "'w'"),
    "unknown optimizer": ([*NEW, "--config.optimizer.name=adamq"], "optimizer.name='adamq'"),
    "unknown solver of the sheets": ([*NEW, "--config.sample.solver=rk4"], "solver 'rk4' is unknown; known are ddim"),
    "grid that does not fit the process": ([*NEW, "--config.sample.grid=leading"], "need a discrete process"),
    "prompt of the sheets too long": ([*NEW, "--config.sample.prompts=('" + "x" * 40 + "',)"], "40 bytes"),
    "frames do not divide": ([*NEW, "--config.data.frames=5"], "frames=5 must be a multiple of 2"),
    "height does not divide": ([*NEW, "--config.data.height=10"], "height=10 must be a multiple of 4"),
    "heads do not divide": ([*NEW, "--config.model.network.head_size=3"], "head_size=3 must divide"),
    "batch does not divide": (
        [*NEW, "--config.batch_size=6", "--config.accumulate=4"],
        "batch_size=6 must be a multiple of accumulate × data × fsdp = 4",
    ),
    "batch larger than the data": ([*NEW, "--config.batch_size=16"], "11 videos, fewer than one batch"),
    "mesh larger than the devices": (
        [*NEW, "--config.mesh.data=2", "--config.mesh.fsdp=4"],
        "data=2 × fsdp=4 × context=1 × tensor=1 needs 8 devices, but there are 1",
    ),
    "two free mesh axes": ([*NEW, "--config.mesh.fsdp=-1"], "at most one may be -1"),
    "no data folder": ([*NEW, "--config.data.data_dir={none}"], "none is not a folder of videos"),
    "empty data folder": ([*NEW, "--config.data.data_dir={empty}"], "empty holds no videos (.mp4"),
    "captions without videos": ([*NEW, "--config.data.data_dir={captions}"], "no videos here: lost.mp4"),
    "data set that is not prepared": ([*NEW, "--config.data.name=ucf101"], "ucf101 is not prepared in"),
    "workdir under a file": ([*TRAIN, "--workdir={file}/run"], "file/run/config.json cannot be written: Not a dir"),
    "workdir is a file": ([*TRAIN, "--workdir={file}"], "file/config.json cannot be written: File exists"),
    "workdir of another config": (
        [*TRAIN, "--workdir={run}", "--config.ema=0.5"],
        "was started with config.ema=0.9, not 0.5: use another workdir, or that value",
    ),
    "no run": (["experiments/sample.py"], "--run=runs/<name> is needed, or --cascade=<run>,<run>,"),
    "a run and a cascade": (
        [*SAMPLE, "--cascade={run}"],
        "--run=runs/<name> is needed, or --cascade=<run>,<run>,",
    ),
    "a cascade with a prompt that changes": (
        ["experiments/sample.py", "--cascade={run},{run}", "--out={new}", "--prompt=0: a | 4: b"],
        "a cascade takes prompts that hold for the whole video",
    ),
    "a cascade of runs without known channels": (
        ["experiments/sample.py", "--cascade={run},{run}", "--out={new}"],
        "a later stage of a cascade needs a run trained with known pixels as channels (config.known)",
    ),
    "a run that was not trained for concat": (
        [*SAMPLE, "--image={same}", "--respect=concat"],
        "respect='concat' needs a run whose network takes known pixels as channels (config.known.mixture)",
    ),
    "a run without a time for each frame": (
        [*SAMPLE, "--image={same}", "--respect=times"],
        "respect='times' needs a run whose network takes a time for each frame (config.known.tell='times' or",
    ),
    "a pyramid of a run without a time for each frame": ([*SAMPLE, "--pyramid=1"], "pyramid=1 needs a run whose"),
    "a pyramid that is upside down": ([*SAMPLE, "--pyramid=-1"], "pyramid=-1 must be at least 0"),
    "a part of a prompt without its frame": ([*SAMPLE, "--prompt=0: a | b"], "must begin with its frame"),
    "a prompt that changes within a window": (
        [*SAMPLE, "--prompt=0: a | 3: b", "--frames=6"],
        "changes at frame 3, but the windows draw from frames 0, 4 on",
    ),
    "an adapter without its model": ([*SAMPLE, "--motion_adapter=x"], "was not trained on such a folder"),
    "an adapter for a chain of runs": (
        ["experiments/sample.py", "--cascade={run},{run}", "--motion_adapter=x"],
        "--motion_adapter needs --pretrained=<model>",
    ),
    "a base model for a chain of runs": (
        ["experiments/sample.py", "--cascade={run},{run}", "--pretrained=x"],
        "--run=runs/<name> is needed, or --cascade=",
    ),
    "a base model for the export of another run": (
        ["experiments/export.py", "--run={run}", "--out={new}", "--pretrained=x"],
        "run was not trained on such a folder",
    ),
    "a LoRA without its model": ([*SAMPLE, "--lora=x"], "--lora needs --pretrained=<model>"),
    "a LoRA of another kind": (
        ["experiments/sample.py", "--pretrained={model}", "--lora={lora}:0.5"],
        "lora.safetensors: 1 tensors are of no known form; pairs of matrices",
    ),
    "a new network for diffusers": (
        ["experiments/export.py", "--run={run}", "--lora", "--out={new}"],
        "run trained a network of its own, which diffusers does not know",
    ),
    "free noise without its model": ([*SAMPLE, "--free_noise=16,4"], "--free_noise needs --pretrained=<model>"),
    "free noise of one number": (
        ["experiments/sample.py", "--pretrained=x", "--free_noise=16"],
        "--free_noise=16 must be length,stride",
    ),
    "no rounds": ([*SAMPLE, "--free_init=0"], "free_init=0 must be at least 1"),
    "no folder of a model": (
        ["experiments/sample.py", "--pretrained=nowhere"],
        "nowhere is not a folder; download the model",
    ),
    "a run and a model": ([*SAMPLE, "--pretrained=x"], "was not trained on such a folder"),
    "enlarged by a factor that does not divide": (
        [*SAMPLE, "--video={video}", "--enlarge=3"],
        "--enlarge=3 must divide the 8",
    ),
    "enlarged by a run without super-resolution": (
        [*SAMPLE, "--video={small}", "--enlarge=2"],
        "cannot enlarge a video by 2: this run was trained for 1 (config.known.downsample); take reconstruct",
    ),
    "unknown kind of mask": (
        ["experiments/train.py", "--config={masks}", "--workdir={new}"],
        "known.mixture.middle must be one of nothing, everything",
    ),
    "run that does not exist": (["experiments/sample.py", "--run={none}"], "none is no run folder: it holds no conf"),
    "config.json of something else": (["experiments/sample.py", "--run={foreign}"], "is not the config of a run"),
    "config.json cut off": (["experiments/sample.py", "--run={cut}"], "config.json cannot be read"),
    "run without checkpoint": (["experiments/sample.py", "--run={early}"], "early/checkpoints holds no checkp"),
    "checkpoint of another config": (
        ["experiments/sample.py", "--run={other}"],
        "it is damaged, or was made with another config (network/middle1/space_attention/attention/text_kv/kernel has",
    ),
    "prompt too long": ([*SAMPLE, "--prompt=" + "x" * 16], "text of 16 bytes must have at most 15"),
    "no file of prompts": ([*SAMPLE, "--prompts={none}"], "none cannot be read: No such file"),
    "unknown solver": ([*SAMPLE, "--solver=rk4"], "solver 'rk4' is unknown; known are ddim, heun"),
    "unknown grid": ([*SAMPLE, "--grid=log"], "grid 'log' is unknown; known are uniform"),
    "no steps": ([*SAMPLE, "--steps=0"], "steps=0 must be at least 1"),
    "eta out of range": ([*SAMPLE, "--eta=2"], "eta=2.0 must be between 0 (no noise) and 1"),
    "seed out of range": ([*SAMPLE, "--seed=4294967296"], "seed=4294967296 must be at least 0 and below"),
    "no videos": ([*SAMPLE, "--num=0"], "num=0"),
    "unknown format": ([*SAMPLE, "--format=gif,mkv"], "--format=mkv must be of mp4, webm, gif, png, npy"),
    "output folder is a file": ([*SAMPLE[:2], "--out={file}"], "file cannot be written: File exists"),
    "output folder under a file": ([*SAMPLE[:2], "--out={file}/x"], "file/x cannot be written: Not a dir"),
    "image at a frame out of range": (
        [*SAMPLE, "--image={same}", "--image-at=4"],
        "an image at frame 4 is out of range: the video has frames 0 to 3",
    ),
    "images without frames": (
        [*SAMPLE, "--image={picture}", "--image={picture}"],
        "must be 2 different frames, one per",
    ),
    "frame of an image that is no number": (
        [*SAMPLE, "--image={picture}", "--image_at=last"],
        "--image_at=last must be whole",
    ),
    "video for an image": ([*SAMPLE, "--image={video}"], "is a video, where a picture is needed"),
    "image for a video": ([*SAMPLE, "--video={picture}", "--extend=3"], "is not a video (.mp4"),
    "image and video": ([*SAMPLE, "--video={video}", "--image={picture}"], "one of them at a time"),
    "video without a purpose": ([*SAMPLE, "--video={video}"], "--video needs one of --extend, --interpolate"),
    "extension of nothing": ([*SAMPLE, "--extend=3"], "--extend needs --video=<file>"),
    "extension by nothing": ([*SAMPLE, "--video={video}", "--extend=0"], "extend=0 must be a number of frames"),
    "context longer than the clip": (
        [*SAMPLE, "--video={video}", "--extend=3", "--context=4"],
        "context=4 must be at least 0 and below the clip's 4 frames",
    ),
    "interpolation by 1": ([*SAMPLE, "--video={video}", "--interpolate=1"], "interpolate=1 must be at least 2"),
    "mask of another size": (
        [*SAMPLE, "--video={video}", "--mask={picture}"],
        "picture.png has 6×6 pixels, its video 8×8",
    ),
    "mask of another length": ([*SAMPLE, "--video={video}", "--mask={short}"], "a mask of 2 frames must have 1 frame"),
    "border that is too wide": ([*SAMPLE, "--video={video}", "--outpaint=4,4,0,0"], "leaves nothing of 8×8 pixels"),
    "strength for new frames": (
        [*SAMPLE, "--video={video}", "--extend=3", "--strength=0.5"],
        "--strength noises the video, and --extend adds pixels that the video does not have",
    ),
    "images at one frame": (
        [*SAMPLE, "--image={same}", "--image={same}", "--image_at=1,1"],
        "--image_at=1,1 must be 2 different frames, one per --image",
    ),
    "noise on known pixels that are not seen": (
        [*SAMPLE, "--image={same}", "--known_noise=0.3"],
        "--known_noise=0.3 needs known pixels that the network sees (--respect=concat, times)",
    ),
    "frame of no image": ([*SAMPLE, "--image_at=2"], "--image_at=2 needs --image=<file>"),
    "two lengths": (
        [*SAMPLE, "--video={video}", "--extend=3", "--frames=9"],
        "--frames=9 needs a task without --video",
    ),
    "respect of nothing": ([*SAMPLE, "--respect=reconstruct"], "--respect=reconstruct needs known pixels"),
    "weight of another way to respect": (
        [*SAMPLE, "--image={same}", "--reconstruction=5"],
        "--reconstruction=5.0 needs --respect=reconstruct",
    ),
    "negative prompt without guidance": (
        [*SAMPLE, "--guidance=1", "--negative_prompt=blurry"],
        "--negative_prompt=blurry needs guidance, and --guidance=1 is none",
    ),
    "negative prompt that is too long": ([*SAMPLE, "--negative_prompt=" + "x" * 40], "40 bytes"),
    "demo of other data": (
        ["experiments/demo.py", "--config=tests/tiny_config.py", "--run={new}"],
        "trains on folder, and the demo needs moving_digits",
    ),
    "strength out of range": ([*SAMPLE, "--video={video}", "--strength=1.5"], "strength=1.5 must be above 0"),
    "unknown way to respect": ([*SAMPLE, "--respect=obey"], "respect='obey' must be one of replace, reconstruct"),
    "unknown metric": (
        [*EVALUATE, "--metrics=jerk,smothness"],
        "metric 'smothness' is unknown; did you mean smoothness?",
    ),
    "metric of another data set": (
        [*EVALUATE, "--metrics=digit"],
        "digit needs moving digits, one in a clip; the data is",
    ),
    "metric without weights": ([*EVALUATE, "--metrics=fvd"], "fvd needs weights, --i3d=<path>: i3d_torchscript.pt ("),
    "metric of known pixels without known pixels": (
        [*EVALUATE, "--metrics=ssim"],
        "ssim compares drawn clips with true clips: known must be one of extension, half known;",
    ),
    "unknown mode": ([*EVALUATE, "--known=half"], "known='half' must be one of: extension, half known;"),
    "weights that do not exist": (
        [*EVALUATE, "--metrics=clip", "--clip={none}"],
        "none is not a folder; CLIP is published as a folder with",
    ),
    "too few real clips": (
        [*EVALUATE, "--metrics=flicker", "--num=6"],
        "num=6 needs 12 real clips, half of them as the reference",
    ),
    "real clips that do not exist": (
        [*EVALUATE, "--metrics=flicker", "--real={none}"],
        "is not prepared in",
    ),
    "an adapter for a run": ([*EVALUATE, "--motion_adapter={empty}"], "was not trained on such a folder"),
    "way to respect without known pixels": ([*EVALUATE, "--respect=concat"], "--respect=concat needs --known"),
    "another scheduler for a run": ([*SAMPLE, "--scheduler=dpmpp"], "--scheduler needs --pretrained=<model>"),
    "another scheduler of a run": ([*EVALUATE, "--scheduler=dpmpp"], "--scheduler=dpmpp needs --pretrained"),
    "a type for a run": ([*SAMPLE, "--dtype=bfloat16"], "--dtype needs --pretrained=<model>"),
    "prompts that are no text": ([*SAMPLE, "--prompts={picture}"], "picture.png cannot be read: it is not text"),
    "seed of a study's base": ([*ABLATE, "--set=seed=3"], "seed=3 must be set by --seeds, not in the base config"),
    "guidance that is no number": ([*EVALUATE, "--guidance=1,x"], "--guidance=1,x must be numbers, such as 1,3"),
    "a model without real clips": (["experiments/evaluate.py", "--pretrained=x"], "--pretrained needs --real=<folder"),
    "report of nothing": (["experiments/report.py"], "--run=runs/<name> is needed"),
    "report of no run": (["experiments/report.py", "--run={none}"], "none is no run folder"),
    "human evaluation without a job": (["experiments/human_eval.py"], "the first word must be make or aggregate"),
    "study of one set": ([*STUDY, "--set=a={videos}"], "a study needs two sets of videos or more, not 1"),
    "set without a name": ([*STUDY, "--set={videos}"], "must be <name>=<folder>, each name once"),
    "set without samples": (
        [*STUDY, "--set=a={videos}", "--set=b={empty}"],
        "videos holds no videos of experiments/sample.py",
    ),
    "scale without a question": ([*STUDY, "--scale=motion"], "--scale='motion' must be '<name>: <question>'"),
    "page of another suffix": ([*STUDY, "--out={new}"], "new must end in .html"),
    "no answers": (["experiments/human_eval.py", "aggregate"], "--answers=<file>,… is needed"),
    "no key": (
        ["experiments/human_eval.py", "aggregate", "--answers={file}", "--key={none}"],
        "none cannot be read (No such file",
    ),
    "key of something else": (
        ["experiments/human_eval.py", "aggregate", "--answers={file}", "--key={foreign}/config.json"],
        "config.json is not the key of a study",
    ),
    "evaluation of nothing": (["experiments/evaluate.py"], "--run=runs/<name> is needed, or --pretrained=<folder>"),
}

# Commands of one line, by file name.
COMMANDS = {
    "interrupt.py": "raise KeyboardInterrupt",
    "lines.py": "from vdm_jax.errors import InputError; raise InputError('steps=0\\n  must be at least 1')",
    "bug.py": "1 / 0",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes what the commands find, by name; nothing is called "new" or "none"."""
    root = tmp_path_factory.mktemp("folders")
    tiny["write_videos"](root / "videos")
    for name in ("empty", "captions", "damaged", "foreign", "cut", "early", "released"):
        (root / name).mkdir()
    (root / "file").write_text("in the way")
    (root / "faulty").write_text("def get_config():\n    raise ValueError('blocks=x is no number')\n")
    (root / "lacking").write_text(
        "from vdm_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.sample = dict(steps=3)\n    return config\n"
    )
    (root / "needy").write_text("import os\ndef get_config():\n    return os.environ['DATA_DIR']\n")
    (root / "misspelt").write_text(
        "from vdm_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.step = 3\n    return config\n"
    )
    (root / "removed").write_text(
        "from vdm_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.pretrained.train = 'time'\n    return config\n"
    )
    (root / "masks.py").write_text(
        f"from runpy import run_path\ndef get_config():\n    config = run_path({str(ROOT / 'tests/tiny_config.py')!r})"
        f"['get_config']()\n    config.data.data_dir = {str(root / 'videos')!r}\n"
        "    config.known.mixture = dict(middle=1.0)\n    return config\n"
    )
    (root / "model" / "unet").mkdir(parents=True)
    (root / "model" / "model_index.json").write_text("{}")
    (root / "model" / "unet" / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    save_file({"lora_unet_conv_in.lokr_w1": np.ones((2, 2))}, root / "lora.safetensors")
    noise = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3)).astype(np.uint8)
    write_video(root / "video.gif", noise, 8)
    write_video(root / "short.gif", noise[:2], 8)
    write_video(root / "small.gif", noise[:, :4, :4], 8)
    write_image(root / "picture.png", noise[0, :6, :6])
    write_image(root / "same.png", noise[0])
    tiny["write_videos"](root / "captions")
    (root / "captions" / "metadata.jsonl").write_text('{"file_name": "lost.mp4", "text": "gone"}\n')
    (root / "damaged" / "a.mp4").write_bytes(b"no video")
    (root / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    (root / "cut" / "config.json").write_text('{"seed": ')
    (root / "released" / "config.json").write_text('{"model": {"unet": {}}}')
    (root / "commands").mkdir()
    for name, line in COMMANDS.items():
        text = f"from vdm_jax import command\ndef main():\n    {line}\ncommand.run(main)\n"
        (root / "commands" / name).write_text(text)

    config = tiny["get_config"]()
    config.data.data_dir = str(root / "videos")
    mesh = make_mesh(devices=jax.devices()[:1])
    tx, _ = optimizer_of(config)
    split = split_of(config, build(config, mesh))
    _, initialise = plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)
    parts = to_parts(initialise()) | {"data": {"next_batch": 1}}
    for name in ("run", "other"):
        if name == "other":
            config.model.text.width = 32
        write_config(root / name, config)
        checkpoints = Checkpoints(root / name / "checkpoints")
        checkpoints.save(1, parts)
        checkpoints.close()
    write_config(root / "early", config)
    return root


@pytest.fixture(scope="module")
def outcomes(folders, outcome):
    """Returns status, stdout and stderr of every case."""
    names = [path.name for path in folders.iterdir()]
    places = {name.split(".")[0]: str(folders / name) for name in [*names, "new", "none"]}
    commands = {name: [argument.format(**places) for argument in arguments] for name, (arguments, _) in CASES.items()}
    commands |= {name: [str(folders / "commands" / name)] for name in COMMANDS}
    commands["help"] = ["experiments/train.py", "--help"]
    here = {path.name for path in ROOT.glob("[!.]*")}
    outcomes = {name: outcome(ROOT, *command) for name, command in commands.items()}
    assert not [path.name for pattern in ("new*", "none*") for path in folders.glob(pattern)]  # nothing was written
    assert here == {path.name for path in ROOT.glob("[!.]*")}
    assert (folders / "file").read_text() == "in the way"
    assert sorted(path.name for path in (folders / "run").iterdir()) == ["checkpoints", "config.json"]
    return outcomes


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_line_and_status_2(case, outcomes):
    status, stdout, stderr = outcomes[case]
    lines = [line for line in stderr.splitlines() if not line.startswith("attention: ")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert CASES[case][1] in lines[0]
    assert (status, stdout) == (2, "")


def test_ctrl_c_ends_with_status_130_and_without_a_traceback(outcomes):
    assert outcomes["interrupt.py"] == [130, "", ""]


def test_a_message_of_several_lines_is_printed_as_one(outcomes):
    assert outcomes["lines.py"] == [2, "", "error: steps=0 must be at least 1\n"]


def test_a_bug_keeps_its_traceback(outcomes):
    status, _, stderr = outcomes["bug.py"]
    assert status == 1
    assert "ZeroDivisionError" in stderr


def test_help_is_no_error(outcomes):
    status, stdout, stderr = outcomes["help"]
    assert (status, stderr) == (0, "")
    assert "--workdir" in stdout
    assert "Trains a model" in stdout


def test_arguments_of_the_network_that_do_not_fit_are_named():
    config = tiny["get_config"]()
    config.model.network.depth = 3
    with pytest.raises(InputError, match=r"config.model.network does not fit 'unet': .*'depth'"):
        build(config)
