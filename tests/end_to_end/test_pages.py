"""The pages in a real browser: a study judged by keys and mouse, saved and evaluated; and the report of a run."""

import json
import os
import shutil
import time
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.config import write_config
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.studies.report import read_findings, write_report
from vdm_jax.studies.results import Result, write_result
from vdm_jax.studies.study import Study, make_plan
from vdm_jax.video import write_image, write_video

selenium = pytest.importorskip("selenium", reason="needs selenium (the dev extra)")
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and chromedriver")

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Two sets of four videos, their study, and a run of 200 steps."""
    folder = tmp_path_factory.mktemp("pages")
    for name, level in (("ours", 200), ("base", 60)):
        for number in range(4):
            video = np.full((4, 16, 16, 1), level, np.uint8)
            video[range(4), :, range(4)] = 0
            about = {"prompt": f"digit {number}", "number": number}
            write_video(folder / "one" / "samples" / name / f"{number}.gif", video, 8, about)
    sets = [f"--set={name}=one/samples/{name}" for name in ("ours", "base")]
    out, _ = run(folder, "human_eval.py", "make", *sets, "--scale=motion: How natural?", "--num=9")
    assert "4 pairs (all that exist: --num=9) in study.html" in out
    write_config(folder / "one", tiny["get_config"]())
    lines = [{"step": s, "loss": 1 / s, "videos_per_second": 40.0, "seconds": 1.0, "skipped": 0} for s in range(1, 201)]
    (folder / "one" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_image(folder / "one" / "samples" / "0000010.png", np.zeros((8, 8, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def until(condition, seconds=60):
    """Waits until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def where(browser):
    return browser.find_element(By.ID, "where").text


def pressed(browser):
    return [button.text for button in browser.find_elements(By.CSS_SELECTOR, "main [aria-pressed=true]")]


def playing(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('video')].every((v) => v.videoWidth > 0 && !v.error && v.currentTime > 0)"
    )


def test_a_study_is_judged_left_gone_on_with_saved_and_counted(run, folder, browser):
    browser.get((folder / "study.html").as_uri())
    assert "4 pairs of videos" in browser.find_element(By.ID, "intro").text
    press(browser, Keys.ENTER)
    assert where(browser) == "Pair 1 of 4"
    assert browser.switch_to.active_element.get_attribute("id") == "where"
    until(lambda: playing(browser))

    # By keys: a complete pair shows the next pair; Backspace goes back.
    assert not browser.find_element(By.ID, "next").is_enabled()
    press(browser, Keys.ARROW_RIGHT, "4")
    assert (where(browser), pressed(browser)) == ("Pair 1 of 4", ["Right →", "4"])
    press(browser, "2")
    assert (where(browser), pressed(browser)) == ("Pair 2 of 4", [])
    press(browser, Keys.BACKSPACE)
    assert (where(browser), pressed(browser)) == ("Pair 1 of 4", ["Right →", "4", "2"])

    # A pair that was complete before stays: change it with the mouse, then continue.
    browser.find_element(By.CSS_SELECTOR, "[data-preference=left]").click()
    browser.find_elements(By.CSS_SELECTOR, ".values button")[9].click()  # 5 for the right video
    assert (where(browser), pressed(browser)) == ("Pair 1 of 4", ["← Left", "4", "5"])
    browser.find_element(By.ID, "next").click()
    assert where(browser) == "Pair 2 of 4"

    # With the keyboard focus on a scale, digits rate its item.
    browser.execute_script("document.querySelectorAll('.values button')[5].focus()")
    press(browser, "3", "1")  # right, then left, which has no rating yet
    assert pressed(browser) == ["1", "3"]
    press(browser, Keys.ARROW_DOWN)
    assert where(browser) == "Pair 3 of 4"

    # A page closed within a pair resumes at this pair.
    press(browser, Keys.ARROW_LEFT)
    browser.refresh()
    assert (where(browser), pressed(browser)) == ("Pair 3 of 4", ["← Left"])
    press(browser, "p")
    assert pressed(browser)[0].startswith("Pause")
    assert browser.execute_script("return document.getElementById('left').paused")
    press(browser, "5", "1", Keys.ARROW_LEFT, "5", "1")
    assert browser.switch_to.active_element.text == "All pairs are judged. Thank you!"
    browser.refresh()
    browser.find_element(By.CSS_SELECTOR, "#end .save").click()
    until(lambda: list(folder.glob("answers-*.json")))
    (answers,) = folder.glob("answers-*.json")

    key = json.loads((folder / "study.key.json").read_text())
    said = json.loads(answers.read_text())
    scores = [(4, 5), (1, 3), (5, 1), (5, 1)]
    assert said["study"] == key["study"]
    assert list(said["answers"].values()) == [
        {"preference": preference, "scales": {"motion": {"left": left, "right": right}}}
        for preference, (left, right) in zip(("left", "none", "left", "left"), scores, strict=True)
    ]
    out, _ = run(folder, "human_eval.py", "aggregate", f"--answers={answers.name}")
    (compared,) = json.loads((folder / "study.results.json").read_text())["comparisons"]
    left_is_ours = [pair["left"] == "ours" for pair in key["pairs"].values()]
    wins = sum(ours for i, ours in enumerate(left_is_ours) if i != 1)
    assert (compared["a"], compared["a_wins"], compared["b_wins"], compared["ties"]) == ("ours", wins, 3 - wins, 1)
    assert compared["win_rate"]["value"] == (wins + 0.5) / 4
    mean = sum(s[0 if ours else 1] for s, ours in zip(scores, left_is_ours, strict=True)) / 4
    assert compared["scales"]["motion"]["a"]["value"] == mean
    assert f"| ours | base | {wins} | {3 - wins} | 1 | {(wins + 0.5) / 4:.3g} [" in out
    assert browser.get_log("browser") == []


def test_the_page_does_not_tell_the_sets_apart(folder):
    text = (folder / "study.html").read_text()
    assert "ours" not in text
    assert "base" not in text.replace("base64", "")


def test_a_report_shows_curves_and_plays_videos(run, folder, browser):
    out, _ = run(folder, "report.py", "--run=one")
    assert "one/report.html" in out
    browser.get((folder / "one" / "report.html").as_uri())
    button = browser.find_element(By.ID, "stop")
    browser.execute_script("arguments[0].scrollIntoView()", button)  # videos outside the window do not play
    until(lambda: playing(browser))
    assert len(browser.find_elements(By.TAG_NAME, "video")) == 8
    assert browser.execute_script(
        "return [...document.images].length && [...document.images].every((i) => i.naturalWidth > 0)"
    )

    chart, said = (browser.find_element(By.CSS_SELECTOR, f".chart {what}") for what in ("svg", "output"))
    assert said.text == "0.005 at step 200"
    assert browser.execute_script("return arguments[0].querySelector('.line0').getTotalLength()", chart) > 400
    ActionChains(browser).move_to_element_with_offset(chart, -chart.size["width"] // 4, 0).perform()
    step = int(said.text.split()[-1])
    assert 25 < step < 75
    assert said.text.startswith(f"{1 / step:.4g} at step")

    ActionChains(browser).move_to_element(button).perform()  # the pointer leaves
    browser.execute_script("arguments[0].focus()", chart)
    press(browser, Keys.HOME, Keys.ARROW_RIGHT)
    assert said.text == "0.5 at step 2"
    browser.execute_script("arguments[0].blur()", chart)
    assert said.text == "0.005 at step 200"

    button.click()
    assert all(video.get_property("paused") for video in browser.find_elements(By.TAG_NAME, "video"))
    button.click()
    assert not any(video.get_property("paused") for video in browser.find_elements(By.TAG_NAME, "video"))
    assert browser.get_log("browser") == []


def test_a_report_of_a_study_plays_its_videos(folder, browser):
    about = {"claim": "c", "source": "s", "metrics": ("flicker",), "num": 2, "name": "x", "seeds": (0,)}
    plan = make_plan(Study(base=tiny["get_config"](), arms={"a": {}}, **about), folder / "runs", folder / "study")
    scores = {"": {"flicker": Interval(0.2, 0.1, 0.3)}}
    cost = {"parameters": 1, "training_seconds": 1.0, "drawing_seconds": 1.0}
    videos = np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
    write_result(plan.cells[0], Result(scores, cost, {}, "1 × cpu", ["a", "b"]), videos)
    write_report(read_findings(plan), folder / "study", "python x", iter)
    browser.get((folder / "study" / "report.html").as_uri())
    button = browser.find_element(By.ID, "stop")
    browser.execute_script("arguments[0].scrollIntoView()", button)
    until(lambda: playing(browser))
    button.click()
    assert all(video.get_property("paused") for video in browser.find_elements(By.TAG_NAME, "video"))
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("page", ["study.html", "one/report.html"])
def test_pages_fit_a_telephone(folder, browser, page):
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((folder / page).as_uri())
    try:
        if page == "study.html":
            browser.execute_script("localStorage.clear()")
            browser.refresh()
            browser.find_element(By.ID, "begin").click()
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
