"""Makes a self-contained page of a run: curves, samples, scores, config. The run may still be training.

python experiments/report.py --run runs/digits
"""

from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder.")
OUT = flags.DEFINE_string("out", None, "File of the page (default: <run>/report.html).")
NUM = flags.DEFINE_integer("num", 24, "Number of videos from each folder in samples/.", lower_bound=1)


def main() -> None:
    """Writes the page, and prints its path."""
    if not RUN.value:
        raise InputError("--run=runs/<name> is needed")

    from tqdm import tqdm

    from vdm_jax.files import write_text
    from vdm_jax.pages.run_report import make_report

    run = Path(RUN.value)
    out = Path(OUT.value) if OUT.value else run / "report.html"
    text = make_report(
        run, num=NUM.value, progress=lambda videos: tqdm(videos, unit="video", desc="encoding", leave=False)
    )
    write_text(out, text)
    print(f"{out}, {len(text) / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    command.run(main)
