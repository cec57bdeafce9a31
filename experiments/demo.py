"""The whole path in one command: trains the small config, samples ten prompts, measures, and prints a summary.

python experiments/demo.py --run runs/moving_digits
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", "runs/moving_digits", "Run folder; an existing run is continued.")
CONFIG = flags.DEFINE_string("config", "configs/moving_digits.py", "Config to train; its data must be moving digits.")
NUM = flags.DEFINE_integer("num", 200, "Samples to measure for each guidance scale.", lower_bound=2)

HERE = Path(__file__).parent
PROMPTS = HERE / "demo_prompts.txt"
STEPS = "--steps=8"  # more steps are not better: docs/ablations/sampler/table.md


def main() -> None:
    """Runs train.py, sample.py and evaluate.py, each with the printed command, and prints a summary."""
    start, run = time.perf_counter(), Path(RUN.value)
    check_data()
    step("train", f"--config={CONFIG.value}", f"--workdir={run}")
    steps = json.loads((run / "config.json").read_text())["steps"]
    if not (run / "checkpoints" / str(steps)).is_dir():  # SIGTERM stopped it
        print("stopped; the same command continues from here", file=sys.stderr)
        return
    out = run / "samples" / "demo"
    step("sample", f"--run={run}", f"--prompts={PROMPTS}", f"--out={out}", "--format=gif,mp4,png", STEPS)
    step("evaluate", f"--run={run}", f"--num={NUM.value}", "--guidance=1,3", STEPS)

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads((run / "evaluation.json").read_text())
    trained = sum(m["seconds"] for m in metrics)
    print(f"""
{"─" * 78}
steps      {metrics[-1]["step"]}, loss {metrics[-1]["loss"]:.4f}
time       {minutes(trained)} of training, {minutes(time.perf_counter() - start)} for this call""")
    for name, label in {"guidance 1": "guidance 1", "guidance 3": "guidance 3", "real": "real test clips"}.items():
        digit, direction, jerk = (scores[name][metric]["value"] for metric in ("digit", "direction", "jerk"))
        floor = f" (frames shuffled: {scores['shuffled']['jerk']['value']:.2f})" if name == "real" else ""
        word = "accuracy" if name.startswith("guidance") else ""
        print(f"{word:<10} {label}: digit {digit:.1%}, direction {direction:.1%}, jerk {jerk:.2f}{floor}")
    print(f"samples    {out}: sheet.png shows all; each is a gif, an mp4 and a png")
    print(f'more       python experiments/sample.py --run {run} --prompt "a seven going up"')


def check_data() -> None:
    """Raises InputError for a config of other data: prompts and summary are about digits."""
    from vdm_jax.config import read_file

    name = read_file(CONFIG.value).data.name
    if name != "moving_digits":
        raise InputError(f"--config={CONFIG.value} trains on {name}, and the demo needs moving_digits")


def step(script: str, *arguments: str) -> None:
    """Runs another command; passes on its failure and a Ctrl-C."""
    print(f"\n$ python experiments/{script}.py {' '.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, HERE / f"{script}.py", *arguments])
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the child has it, too, and saves
        status = process.wait()
    if status == 130:
        print("interrupted; the same command continues from here", file=sys.stderr)
    if status:
        sys.exit(status)


def minutes(seconds: float) -> str:
    """Returns 3:05 min for 185 seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


if __name__ == "__main__":
    command.run(main)
