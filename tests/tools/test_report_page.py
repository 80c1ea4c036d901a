"""The report in a browser: what is seen is what the runs have written."""

import functools
import json
import shutil
import time

import numpy as np
import pytest
from report_runs import record, write_experiment, write_run

from alexnet_jax.tools.report import command as report
from alexnet_jax.tools.report import reader

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(
  not shutil.which("chromedriver"), reason="needs chromium and chromedriver"
)
EVIL = "</script><script>alert(1)</script>"
_QUIET = (
  "--headless=new --no-sandbox --disable-gpu --no-first-run"
  " --disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  options = webdriver.ChromeOptions()
  for flag in _QUIET:
    options.add_argument(flag)
  options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(shutil.which("chromedriver"))
  driver = webdriver.Chrome(options=options, service=service)
  yield driver
  driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Makes files: an experiment of three arms, and two runs of their own."""
  folder = tmp_path_factory.mktemp("pages")
  levels = {"first": 0.5, "second": 0.25, "third": 0.125}
  held = []
  for arm, level in levels.items():
    for seed in range(2):
      lines = [
        record(
          s,
          "validation",
          loss=10 * level,
          top1_error=level * (1 - s / 200) + seed / 100,
        )
        for s in range(0, 101, 10)
      ]
      config = {"seed": seed, "field": arm, "long": "x" * 300}
      if arm == "second":
        config["extra"] = 1
      held.append((f"{arm}-{seed}", lines, config))
  rows = [
    (arm, seed, "finished", level + seed / 50, level)
    for arm, level in levels.items()
    for seed in range(2)
  ]
  experiment = write_experiment(
    folder / "arms", rows, ("test_error", "validation_error"), held
  )
  lines = [record(s, "train", top1_error=0.5 - s / 400) for s in range(1, 101)]
  evil = write_run(
    folder / "own" / EVIL.replace("/", "\\"),
    lines,
    {"x": EVIL},
    class_names=[EVIL, "b"],
    confusions={"split": "test", "views": 1, "counts": [[0, 1, 5], [0, 0, 5]]},
  )
  plain = write_run(folder / "own" / "plain", lines[::10], {"x": 1})
  timed = write_run(
    folder / "timed",
    [record(s, top1_error=s / 256, images_per_second=8) for s in (32, 64)],
    {"batch_size": 30},
  )
  names = ("train", "constructor", "__proto__")
  odd = [record(s, name, loss=s) for name in names for s in (1, 2)]
  sources = {
    "odd": [write_run(folder / "odd", odd)],
    "arms": [experiment],
    "own": [evil, plain],
    "times": [timed, plain],
  }
  for name, folders in sources.items():
    html = report.page(report.collect(reader.read(folders)))
    (folder / f"{name}.html").write_text(html)
  return folder


@pytest.fixture
def opened(browser, pages):
  """Opens a page anew, 1280 px wide."""

  def get(name, width=1280, height=900):
    browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {
        "width": width,
        "height": height,
        "deviceScaleFactor": 1,
        "mobile": width < 500,
      },
    )
    browser.get((pages / f"{name}.html").as_uri())
    browser.execute_script("localStorage.clear()")
    return functools.partial(browser.execute_script)

  yield get
  logged = [x for x in browser.get_log("browser") if x["level"] != "INFO"]
  assert logged == []
  asked = "return performance.getEntriesByType('resource').map(x => x.name)"
  found = browser.execute_script(asked)
  assert [name for name in found if not name.startswith("data:")] == []


HOVER = """
  const plot = document.getElementById("plot");
  const box = plot.getBoundingClientRect();
  for (const x of [0, arguments[0]]) plot.dispatchEvent(new PointerEvent(
    "pointermove", {clientX: box.left + x, clientY: box.top + 50}));
  return [document.getElementById("at").textContent,
    Object.fromEntries([...document.querySelectorAll(".legend li")].map(
      (item) => [item.dataset.name, [...item.querySelectorAll(".value")].map(
        (value) => Number(value.textContent))]))];
"""
# Pixels of the plot that have about the colour of a run.
COUNT = """
  const plot = document.querySelector(".plot canvas");
  const copy = new OffscreenCanvas(plot.width, plot.height)
    .getContext("2d", {willReadFrequently: true});
  copy.drawImage(plot, 0, 0);
  const {data} = copy.getImageData(0, 0, plot.width, plot.height);
  const [r, g, b] = arguments[0];
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) +
        Math.abs(data[i + 2] - b) < 30 && data[i + 3] > 200) count += 1;
  return count;
"""
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
CLICK = "document.querySelector(arguments[0]).click()"


def choose(script, selector, value):
  script(
    "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
    " for (const name of ['input', 'change']) x.dispatchEvent(new Event(name))",
    selector,
    value,
  )


def test_crosshair_tells_the_values_of_runs(opened):
  """Of a planted straight line, wherever it is looked at."""
  script = opened("own")
  choose(script, "#choose-x", "step")
  seen = set()
  for x in (200, 400, 600):
    at, values = script(HOVER, x)
    step = float(at.split()[-1])
    (plain,) = values["plain"]
    assert plain == pytest.approx(50 - step / 4, abs=1.3)  # Every tenth step.
    (other,) = next(v for name, v in values.items() if "alert" in name)
    assert other == pytest.approx(50 - step / 4, abs=0.14)
    seen.add(other)
  assert len(seen) == 3


def test_arms_show_the_mean_of_their_seeds(opened):
  script = opened("arms")
  _, values = script(HOVER, 10_000)  # The last step.
  assert values == {"first": [25.5], "second": [13.0], "third": [6.75]}
  script(CLICK, "#choose-each")
  _, values = script(HOVER, 10_000)
  assert values["first-0"] == [25.0]
  assert values["first-1"] == [26.0]
  assert len(values) == 6


def test_a_run_is_hidden_and_shown_again(opened):
  script = opened("arms")
  entry = '.legend li[data-name="second"] button'
  before = script(COUNT, ORANGE)
  assert before > 300
  script(CLICK, entry)
  assert script(COUNT, ORANGE) == 0
  assert script(COUNT, BLUE) > 300
  pressed = f"return document.querySelector('{entry}').ariaPressed"
  assert script(pressed) == "false"
  assert script(HOVER, 500)[1]["second"] == []
  script(CLICK, entry)
  assert script(COUNT, ORANGE) > 300
  script(CLICK, "#none")
  assert script(COUNT, BLUE) == script(COUNT, ORANGE) == 0
  script(CLICK, "#all")
  choose(script, "#choose-name", "ThIrD")
  assert list(script(HOVER, 500)[1]) == ["third"]
  assert script(COUNT, BLUE) == 0


def test_config_differences_are_of_what_is_shown(opened):
  script = opened("arms")
  cells = (
    "return [...document.querySelectorAll('.config th, .config td')].map("
    "x => x.textContent)"
  )
  shown = ["field", "first", "second", "third", "field"]
  assert script(cells) == [*shown, "first", "second", "third"]
  below = "return document.querySelector('.config + p')?.textContent"
  assert script(below) == "Lacking in some: extra."
  script(CLICK, '.legend li[data-name="second"] button')
  assert script(cells) == ["field", "first", "third", "field", "first", "third"]
  assert script(below) is None
  script(CLICK, '.legend li[data-name="first"] button')
  assert script(cells) == []


def test_a_heading_sorts_by_its_column(opened):
  script = opened("arms")
  names = (
    "return [...document.querySelectorAll('section.long tbody th')].map("
    "x => x.textContent)"
  )
  order = (
    "return [...document.querySelectorAll('section.long thead th')].map("
    "x => x.ariaSort)"
  )
  assert script(names) == ["first", "second", "third"]
  button = "section.long thead th:nth-child(3) button"
  script(CLICK, button)
  assert script(names) == ["third", "second", "first"]
  assert script(order) == ["none", "none", "ascending", "none"]
  script(CLICK, button)
  assert script(names) == ["first", "second", "third"]
  assert script(order) == ["none", "none", "descending", "none"]
  first = "return document.querySelector('section.long td .mean').textContent"
  assert script(first) == "51.00"


def test_log_scale_has_marks_where_its_ends_are_near(opened):
  """Of errors from 12.5 to 51 %."""
  script = opened("arms")
  script(CLICK, '.legend li[data-name="third"] button')
  script("""
    window.texts = [];
    const draw = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...where) {
      window.texts.push(text);
      draw.call(this, text, ...where);
    };
  """)
  script(CLICK, "#choose-logY")
  texts = script("return window.texts")
  assert {"20", "30", "40", "50"} <= set(texts)


def test_log_scale_moves_the_curves(opened):
  """At half of the height is the geometric mean."""
  script = opened("arms")
  before = script("return document.querySelector('canvas').toDataURL()")
  script(CLICK, "#choose-logY")
  after = script("return document.querySelector('canvas').toDataURL()")
  assert before != after
  choose(script, "#choose-x", "step")
  middle = float(script(HOVER, 450)[0].split()[-1])
  script(CLICK, "#choose-logX")
  assert float(script(HOVER, 450)[0].split()[-1]) < middle


def test_smoothing_pulls_a_line_towards_its_past(opened):
  script = opened("own")
  raw = script(HOVER, 10_000)[1]
  choose(script, "#choose-smooth", "80")
  smooth = script(HOVER, 10_000)[1]
  (name,) = (name for name in raw if "alert" in name)
  assert raw[name] == [25.0]
  assert 30 > smooth[name][0] > 25.5


def test_a_curve_that_has_ended_has_no_value_there(opened):
  script = opened("own")
  assert script(HOVER, 10_000)[1]["plain"] == [None]


def test_over_time_are_the_runs_that_tell_it(opened):
  """64 steps of 30 images at 8 a second are 4 minutes."""
  script = opened("times")
  assert script(COUNT, ORANGE) > 10
  choose(script, "#choose-x", "time")
  at, values = script(HOVER, 10_000)
  assert float(at.split()[-1]) == pytest.approx(4, abs=0.1)
  assert values == {"timed": [25.0], "plain": []}
  assert script(COUNT, BLUE) > 10
  assert script(COUNT, ORANGE) == 0


@pytest.mark.parametrize("name", ["arms", "own"])
def test_a_phone_does_not_scroll_sideways(opened, name):
  script = opened(name, width=360, height=740)
  sizes = (
    "return [document.documentElement.scrollWidth, document.body.scrollWidth,"
    " innerWidth]"
  )
  assert script(sizes) == [360, 360, 360]


def luminance(colour):
  values = [int(x) / 255 for x in colour[4:-1].split(",")]
  linear = [
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values
  ]
  return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_both_themes_have_contrast(opened):
  """WCAG AA: 4.5 to 1, of the text and of what is said beside it."""
  script = opened("own")
  seen = []
  for _ in range(2):
    ground = script("return getComputedStyle(document.body).backgroundColor")
    for selector in ("body", ".caption", ".entry"):
      ink = script(
        "return getComputedStyle(document.querySelector(arguments[0])).color",
        selector,
      )
      low, high = sorted((luminance(ground), luminance(ink)))
      assert (high + 0.05) / (low + 0.05) >= 4.5
    seen.append(luminance(ground))
    script(CLICK, "#theme")
  assert sorted(seen)[0] < 0.05 < 0.9 < sorted(seen)[1]


def test_names_are_text_and_no_markup(opened):
  script = opened("own")
  assert script("return document.scripts.length") == 3
  assert EVIL in script("return document.body.innerText")


def test_splits_may_have_any_name(opened):
  script = opened("odd")
  boxes = "return [...document.querySelectorAll('.split')].map(x => x.value)"
  assert set(script(boxes)) == {"train", "constructor", "__proto__"}
  _, values = script(HOVER, 10_000)
  assert values["odd"] == [2, 2, 2]


def test_fifty_long_runs_are_small_and_open_quickly(browser, tmp_path):
  rng = np.random.default_rng(0)
  noise = rng.normal(0, 0.1, (4, 10_000))
  for number in range(50):
    folder = tmp_path / "runs" / f"run {number}"
    lines = [
      record(
        s + 1,
        loss=2 + x + number,
        top1_error=abs(y),
        top5_error=abs(z),
        learning_rate=abs(w),
      )
      for s, (x, y, z, w) in enumerate(noise.T.tolist())
    ]
    write_run(folder, lines, {"number": number})
  html = report.page(report.collect(reader.read([tmp_path / "runs"])))
  assert len(html) < 5e6
  (tmp_path / "many.html").write_text(html)
  start = time.perf_counter()
  browser.get((tmp_path / "many.html").as_uri())
  timing = json.loads(
    browser.execute_script(
      "return JSON.stringify(performance.getEntriesByType('navigation')[0])"
    )
  )
  print(
    f"{len(html) / 1e6:.2f} MB; loaded in {timing['loadEventEnd']:.0f} ms,"
    f" {time.perf_counter() - start:.2f} s with the driver"
  )
  count = "return document.querySelectorAll('.legend li').length"
  assert browser.execute_script(count) == 50
