"""The report in a browser: what is seen is what the runs have written."""

import json
import shutil

import numpy as np
import pytest
from report_runs import record, write_experiment, write_run

from alexnet_jax.tools.report import page, reader

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(
  not shutil.which("chromedriver"), reason="needs chromium and chromedriver"
)
EVIL = "</script><script>alert(1)</script><b>evil"
_QUIET = (
  "--headless=new --no-sandbox --disable-gpu --no-first-run"
  " --disable-background-networking --disable-component-update --disable-sync"
).split()
# Reads what the chart holds: for each line its name, split, x and y.
LINES = """
  const {data} = Bokeh.documents[0].roots()[0].renderers.find(
    (renderer) => renderer.name === "lines").data_source;
  return data.name.map((name, i) => [name, data.split[i],
    [...data.xs[i]], [...data.ys[i]]]);
"""
# Sets a control, as a hand would.
SET = """
  const found = document.querySelector(arguments[0]);
  if (found.type === "checkbox") found.checked = arguments[1];
  else found.value = arguments[1];
  found.dispatchEvent(new Event("input", {bubbles: true}));
"""
CLICK = "document.querySelector(arguments[0]).click()"


# Where the end of the last line is, and what the open tooltip says.
END = """
  document.getElementById("plot").scrollIntoView();
  const model = Bokeh.documents[0].roots()[0];
  const view = Bokeh.index.get_one(model);
  const ends = model.renderers.find((x) => x.name === "ends").data_source.data;
  const box = view.canvas_view.events_el.getBoundingClientRect();
  const {x_scale, y_scale} = view.frame;
  return [box.left + x_scale.compute(ends.x.at(-1)),
    box.top + y_scale.compute(ends.y.at(-1))];
"""
TOOLTIP = """
  const texts = [];
  const walk = (node) => {
    if (node.host?.classList.contains("bk-Tooltip") ?? false)
      texts.push(node.textContent);
    for (const child of node.querySelectorAll("*"))
      if (child.shadowRoot) walk(child.shadowRoot);
  };
  walk(document);
  return texts.join(" ");
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  options = webdriver.ChromeOptions()
  for flag in _QUIET:
    options.add_argument(flag)
  options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(shutil.which("chromedriver"))
  driver = webdriver.Chrome(options=options, service=service)
  driver.set_script_timeout(15)
  yield driver
  driver.quit()


@pytest.fixture
def show(browser, tmp_path):
  """Opens the page of what was read; returns a function that runs scripts."""

  def opened(found, width=1280, height=900):
    size = {"width": width, "height": height, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride", {**size, "mobile": width < 500}
    )
    html = page.render(found)
    (tmp_path / "page.html").write_text(html)
    browser.get((tmp_path / "page.html").as_uri())
    # Until the chart has been drawn.
    browser.execute_async_script("""
      const wait = () => plot === null && controls
        ? setTimeout(wait, 20) : requestAnimationFrame(arguments[0]);
      wait();
    """)
    return browser.execute_script

  yield opened
  log = browser.get_log("browser")
  assert [x for x in log if x["level"] != "INFO"] == []
  names = "return performance.getEntriesByType('resource').map(x => x.name)"
  loaded = browser.execute_script(names)
  assert [name for name in loaded if not name.startswith("data:")] == []


def write_arms(folder):
  """An experiment of three arms, whose errors fall from 51 to 5 per cent."""
  levels = {"first": 0.5, "second": 0.25, "third": 0.125}
  runs, rows = [], []
  for arm, level in levels.items():
    for seed in range(2):
      errors = {
        s: level * (1 - s / 200) + seed / 100 for s in range(0, 101, 10)
      }
      lines = [
        record(s, "validation", loss=10 * level, top1_error=error)
        for s, error in errors.items()
      ]
      config = {"seed": seed, "field": arm, "long": "x" * 300}
      runs.append((f"{arm}-{seed}", lines, config))
      rows.append((arm, seed, "finished", level + seed / 50))
  return write_experiment(folder, rows, runs=runs)


def test_curves_follow_the_controls(show, tmp_path):
  script = show(reader.read([write_arms(tmp_path / "arms")]))
  last = {name: ys[-1] for name, _, _, ys in script(LINES)}
  assert last == {
    "first, mean of 2": 25.5,
    "second, mean of 2": 13,
    "third, mean of 2": 6.75,
  }
  legend = "return [...document.querySelectorAll('#legend output')].map("
  assert script(legend + "x => x.value)") == ["25.5", "13", "6.75"]
  script(SET, "[name=each]", True)
  lines = {name: (xs, ys) for name, _, xs, ys in script(LINES)}
  assert len(lines) == 6
  np.testing.assert_allclose(lines["first-1"][0], np.arange(11))  # Epochs.
  np.testing.assert_allclose(lines["first-1"][1], 51 - 2.5 * np.arange(11))
  script(SET, "[name=axis]", "step")
  script(SET, "[name=metric]", "loss")
  (xs, ys), *_ = (line[2:] for line in script(LINES))
  assert (xs[-1], ys[-1]) == (100, 5)
  script(SET, "[name=split]", False)
  assert script(LINES) == []


def hover(script, browser):
  """Moves the pointer onto the end of the last line."""
  x, y = script(END)
  for step in (3, 0):
    browser.execute_cdp_cmd(
      "Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x - step, "y": y}
    )
  browser.execute_async_script("setTimeout(arguments[0], 200)")


def test_names_hide_and_show_their_lines(show, tmp_path):
  script = show(reader.read([write_arms(tmp_path / "arms")]))

  def names():
    return [name.split(",")[0] for name, *_ in script(LINES)]

  script(CLICK, "#legend li:nth-child(2) button")
  assert names() == ["first", "third"]
  script(CLICK, "#none")
  assert names() == []
  script(CLICK, "#all")
  assert names() == ["first", "second", "third"]


def test_log_axes_smoothing_and_bands(show, tmp_path):
  """A line of 50 - s / 4 per cent, and steps that a log scale cannot show."""
  lines = [record(s, top1_error=0.5 - s / 400) for s in range(101)]
  lines += [record(s, top1_error=0.9) for s in range(101, 1201)]
  script = show(reader.read([write_run(tmp_path / "run", lines)]))
  scales = "const p = Bokeh.documents[0].roots()[0];"
  scales += "return [p.x_scale.type, p.y_scale.type, p.left[0].axis_label]"
  assert script(scales) == ["LinearScale", "LinearScale", "top-1 error (%)"]
  ((*_, xs, raw),) = script(LINES)
  assert xs[0] == 0
  script(SET, "[name=logx]", True)
  script(SET, "[name=logy]", True)
  assert script(scales)[:2] == ["LogScale", "LogScale"]
  ((*_, xs, ys),) = script(LINES)
  assert xs[0] > 0
  assert ys == raw[1:]
  script(SET, "[name=smooth]", 0.1)
  ((*_, smooth),) = script(LINES)
  jump = ys.index(90)
  assert ys[jump - 1] < smooth[jump] < smooth[jump + 1] < smooth[-1] < 90


def test_tables_sort_and_no_text_is_markup(show, browser, tmp_path):
  evil = write_run(
    tmp_path / EVIL.replace("/", "\\"),
    [record(s, top1_error=0.5) for s in range(9)],
    {"field": EVIL},
  )
  script = show(reader.read([write_arms(tmp_path / "arms"), evil]))
  column = "return [...document.querySelectorAll('table')].map(t =>"
  column += " [...t.tBodies[0].rows].map(r => r.cells[0].textContent))[0]"
  assert script(column) == ["first", "second", "third"]
  button = "table th:nth-child(3)"
  script(CLICK, f"{button} button")
  assert script(column) == ["third", "second", "first"]
  script(CLICK, f"{button} button")
  assert script(column) == ["first", "second", "third"]
  sort = f"return document.querySelector('{button}').ariaSort"
  assert script(sort) == "descending"
  cell = "return document.querySelector('table td:nth-child(3)').innerText"
  assert script(cell).split() == ["51.00", "±", "12.71"]
  assert script("return document.scripts.length") == 4
  assert EVIL in script("return document.body.innerText")
  hover(script, browser)
  assert evil.name in script(TOOLTIP)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_does_not_scroll_sideways_and_texts_are_legible(
  show, tmp_path, dark
):
  """WCAG AA asks for a contrast of 4.5 to 1."""
  found = reader.read([write_arms(tmp_path / "arms")])
  script = show(found, width=360, height=740)
  script(f"root.dataset.theme = '{'dark' if dark else 'light'}'; draw()")
  sizes = "return [document.documentElement.scrollWidth, innerWidth]"
  assert script(sizes) == [360, 360]
  style = "return getComputedStyle(document.querySelector('{}')).{}"
  ground = luminance(script(style.format("body", "backgroundColor")))
  assert (ground < 0.05) == dark
  for selector in ("body", "p", "#legend button", "#legend output"):
    ink = luminance(script(style.format(selector, "color")))
    low, high = sorted((ground, ink))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour):
  values = [int(x) / 255 for x in colour[4:-1].split(",")]
  linear = [
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values
  ]
  return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_fifty_long_runs_make_a_small_page(show, tmp_path):
  noise = np.random.default_rng(0).normal(0, 0.1, (10_000, 3))
  lines = [
    record(s, loss=2 + x, top1_error=abs(y), learning_rate=abs(z))
    for s, (x, y, z) in enumerate(noise.tolist())
  ]
  (run,) = reader.read([write_run(tmp_path / "run", lines)]).runs
  runs = [run._replace(group=f"run {n}") for n in range(50)]
  script = show(reader.Found([], runs, []))
  assert (tmp_path / "page.html").stat().st_size < 5e6
  assert len(script(LINES)) == 50
  timing = (
    "return JSON.stringify(performance.getEntriesByType('navigation')[0])"
  )
  print(f"opened in {json.loads(script(timing))['loadEventEnd']:.0f} ms")
