"""Tables and plot of results.csv; a missing row ends it."""

import csv
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
NAMES = {"ours": "ours", "eager": "torch", "compiled": "torch.compile"}
BETTER = "the better torch"
"""Whom goals and ratios speak of, figure by figure."""
SPEED_GOALS = {
  ("cpu", "two_tower", "train", 32): 1.15,
  ("cpu", "two_tower", "train", 128): 1.15,
  ("cpu", "two_tower", "forward", 32): 1.25,
  ("cpu", "two_tower", "forward", 128): 1.25,
  ("cpu", "one_weird_trick", "train", 32): 1.0,
  ("cpu", "one_weird_trick", "train", 128): 1.0,
  ("cpu", "one_tower", "train", 32): 1.0,
  ("gpu", "two_tower", "train", 1024): 1.5,
  ("gpu", "one_weird_trick", "train", 1024): 1.2,
}
SHARE_GOALS = {("gpu", "two_tower", "train", 1024): 0.4}
MEMORY_GOALS = {("cpu", "two_tower", 128): 0.75}
AUGMENT_GOALS = {"gpu": 0.05}
EPOCH_GOAL_S = 0.5

Row = dict[str, Any]


def read(folder: Path) -> tuple[list[Row], dict[str, Any]]:
  """Returns all rows, and what each platform's are about; none is empty."""
  results, about = folder / "results.csv", folder / "about.json"
  if not results.exists():
    return [], {}
  with results.open(newline="") as file:
    return list(csv.DictReader(file)), json.loads(about.read_text())


class Results:
  """The rows of a platform, by what they tell."""

  def __init__(self, platform: str, about: dict[str, Any], rows: list[Row]):
    """Takes all rows and keeps its own."""
    self.platform, self.about = platform, about
    self.contestants = about["contestants"]
    self.values: dict[Any, list[float]] = {}
    self.notes: dict[Any, str] = {}
    for row in rows:
      if row["platform"] != platform:
        continue
      key = (row["net"], row["batch"], row["what"], row["contestant"])
      if row["note"]:
        self.notes[key] = row["note"]
      else:
        self.values.setdefault(key, []).append(float(row["value"]))

  def of(
    self, net: str, batch: Any, what: str, contestant: str
  ) -> list[float] | None:
    """Returns the figures of all trials; None of what is known to fail.

    Raises:
      SystemExit: there is no such row.
    """
    key = (net, str(batch), what, contestant)
    if key in self.notes:
      return None
    if key not in self.values:
      raise SystemExit(f"no row for {self.platform}, {key}")
    return self.values[key]

  def median(self, *key: Any) -> float | None:
    """Returns the median of `of`."""
    found = self.of(*key)
    return statistics.median(found) if found else None

  def ceiling(self) -> float:
    """Returns the most FLOP/s of a matrix product, of either side."""
    return max(
      rate
      for size in self.about["gemms"]
      for kind in ("ours", "eager")
      for rate in self.of("", "", f"gemm_{size}", kind) or []
    )

  def share(self, net: str, batch: int, what: str) -> float:
    """Returns ours of the ceiling."""
    seconds = self.median(net, batch, what, "ours")
    assert seconds
    return self.about["flops"][net][what] * batch / seconds / self.ceiling()

  def ratio(self, net: str, batch: Any, what: str, rival: str) -> float | None:
    """Returns a rival's figure over ours: above 1 where ours is less."""
    if rival not in self.contestants:
      return None
    theirs = self.median(net, batch, what, rival)
    mine = self.median(net, batch, what, "ours")
    return theirs / mine if theirs and mine else None

  def better(self, net: str, batch: Any, what: str) -> float | None:
    """Returns the ratio of the rival whose figure is least."""
    rivals = self.contestants[1:]
    ratios = (self.ratio(net, batch, what, rival) for rival in rivals)
    return min(filter(None, ratios), default=None)

  def combinations(self) -> list[tuple[str, int]]:
    """Returns all nets at all batch sizes."""
    return list(itertools.product(self.about["nets"], self.about["batches"]))


def _line(*words: str) -> str:
  return f"| {' | '.join(words)} |"


def _head(*words: str) -> list[str]:
  return [_line(*words), "|---" * len(words) + "|"]


def _times(ratio: float | None) -> str:
  return "" if ratio is None else f"{ratio:.2f}"


def _verdict(goal: str, met: bool | None) -> str:
  if met is None:
    return f"{goal}: not measured"
  return f"{goal}: {'met' if met else 'missed'}"


def _rates(seconds: list[float] | None, images: int) -> str:
  """Returns images per second: median, least and most."""
  if not seconds:
    return "failed"
  median = images / statistics.median(seconds)
  least, most = images / max(seconds), images / min(seconds)
  return f"{median:,.4g} ({least:,.4g} to {most:,.4g})"


def _speed(results: Results) -> list[str]:
  columns = [NAMES[kind] for kind in results.contestants]
  lines = _head(
    *("net", "batch", "", *columns, f"ours / {BETTER}"),
    *("of the ceiling", "goal"),
  )
  for net, batch in results.combinations():
    for what in ("train", "forward"):
      key = (results.platform, net, what, batch)
      ratio = results.better(net, batch, what)
      share = results.share(net, batch, what)
      goals = []
      if least := SPEED_GOALS.get(key):
        met = None if ratio is None else ratio >= least
        goals.append(_verdict(f"{least:g} x {BETTER}", met))
      if least := SHARE_GOALS.get(key):
        goals.append(_verdict(f"{least:.0%} of the ceiling", share >= least))
      lines.append(
        _line(
          *(net, str(batch), what),
          *(
            _rates(results.of(net, batch, what, kind), batch)
            for kind in results.contestants
          ),
          *(_times(ratio), f"{share:.0%}", "; ".join(goals)),
        )
      )
  return ["Images per second: median and range of the trials.", "", *lines]


def _memory(results: Results) -> list[str]:
  lines = _head(
    *("net", "batch"),
    *(NAMES[kind] for kind in results.contestants),
    *(f"ours of {BETTER}", "goal"),
  )
  for net, batch in results.combinations():
    words = [net, str(batch)]
    for kind in results.contestants:
      peak = results.median(net, batch, "peak_gb", kind)
      before = results.median(net, batch, "before_gb", kind)
      words.append(f"{peak:.2f} ({before:.2f})" if peak else "failed")
    ratio = results.better(net, batch, "peak_gb")
    words.append(_times(1 / ratio if ratio else None))
    most = MEMORY_GOALS.get((results.platform, net, batch))
    met = None if most is None or ratio is None else 1 / ratio <= most
    goal = _verdict(f"at most {most:g} of {BETTER}", met) if most else ""
    lines.append(_line(*words, goal))
  return [
    "Peak GB of training (of that, before the first step); on CPU of the whole"
    " process with its libraries: XLA compiles in it, torch.compile beside it.",
    "",
    *lines,
  ]


def _answers(results: Results) -> list[str]:
  net, batch = results.about["nets"][0], results.about["batches"][0]
  lines = _head(
    "images",
    *(NAMES[kind] for kind in results.contestants),
    f"ours / {BETTER}",
  )
  for images in results.about["answers"]:
    what = f"answer_{images}"
    words = [str(images)]
    for kind in results.contestants:
      seconds = results.median(net, batch, what, kind)
      words.append(
        f"{1000 * seconds:,.4g} ms, {images / seconds:,.4g} images/s"
        if seconds
        else "failed"
      )
    words.append(_times(results.better(net, batch, what)))
    lines.append(_line(*words))
  return [
    f"An answer by ten views, {net}, from pixels to probabilities on the host:",
    "",
    *lines,
  ]


def _augmentation(results: Results) -> list[str]:
  goal = AUGMENT_GOALS.get(results.platform)
  lines = _head(
    "net", "batch", *(NAMES[kind] for kind in results.contestants), "goal"
  )
  for net, batch in results.combinations():
    shares = []
    for kind in results.contestants:
      alone = results.median(net, batch, "augment", kind)
      step = results.median(net, batch, "train", kind)
      shares.append(alone / step if alone and step else None)
    words = [f"{share:.1%}" if share else "failed" for share in shares]
    met = shares[0] < goal if goal and shares[0] else None
    lines.append(
      _line(
        *(net, str(batch), *words),
        _verdict(f"below {goal:.0%}", met) if goal else "",
      )
    )
  return ["Augmentation, timed alone, of the step:", "", *lines]


def _epoch(results: Results) -> list[str]:
  words = []
  for kind in results.contestants:
    seconds = results.median("cifar10", 128, "epoch", kind)
    words.append(f"{NAMES[kind]} {seconds:.3g} s" if seconds else "failed")
  mine = results.median("cifar10", 128, "epoch", "ours")
  goal = _verdict(
    f"below {EPOCH_GOAL_S:g} s", mine < EPOCH_GOAL_S if mine else None
  )
  return [
    "An epoch of 50,000 images of 32 pixels, four layers, batch 128:"
    f" {', '.join(words)}. Goal, {goal}."
  ]


def _choices(results: Results) -> list[str]:
  lines = _head("net", "", "augmentation", "norm", "optimizer", "threads")
  for net, kinds in results.about["choices"].items():
    for kind, found in kinds.items():
      names = ("augment", "norm", "optimizer", "threads")
      lines.append(_line(net, NAMES[kind], *(str(found[n]) for n in names)))
  return ["torch's fastest spellings (see torch_nets.py):", "", *lines]


def tables(results: Results) -> str:
  """Returns the tables of a platform."""
  about = results.about
  parts = [
    f"### {about['device']}",
    "",
    f"{about['machine']}; {about['versions']}; commit {about['commit']};"
    f" {about['seconds'] / 60:.0f} minutes in all. The ceiling is"
    f" {results.ceiling() / 1e12:.4g} TFLOP/s, the best of"
    f" {' and '.join(NAMES[kind] for kind in ('ours', 'eager'))} at"
    f" {', '.join(map(str, about['gemms']))} square.",
  ]
  sections = [_speed, _memory, _answers, _augmentation, _choices]
  if results.platform == "gpu":
    sections.append(_epoch)
  for section in sections:
    parts += ["", *section(results)]
  if results.notes:
    parts += ["", "Failures:", ""]
    reasons: dict[tuple[str, ...], None] = {}
    for (net, batch, _, kind), note in results.notes.items():
      reasons[net, batch, NAMES[kind], note] = None
    parts += [f"- {', '.join(words[:3])}: {words[3]}" for words in reasons]
  return "\n".join(parts)


COLOURS = {"ours": "#3366bb", "eager": "#cccccc", "compiled": "#888888"}


def draw(found: list[Results], path: Path) -> None:
  """Writes the plot: ours beside torch, with ratios on the bars."""
  figure, axes = plt.subplots(
    len(found),
    2,
    figsize=(13, 4.5 * len(found)),
    squeeze=False,
    layout="constrained",
  )
  for results, pair in zip(found, axes, strict=True):
    for axis, what in zip(pair, ("train", "forward"), strict=True):
      _bars(axis, results, what)
  marks = axes[0][0].get_legend_handles_labels()
  figure.legend(*marks, loc="outside lower center", ncols=3, frameon=False)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _bars(axis: Any, results: Results, what: str) -> None:
  """Draws images per second, with what ours is of each rival."""
  places = results.combinations()
  width = 0.8 / len(results.contestants)
  for number, kind in enumerate(results.contestants):
    for place, (net, batch) in enumerate(places):
      seconds = results.median(net, batch, what, kind)
      height = batch / seconds if seconds else 0
      x = place + (number - (len(results.contestants) - 1) / 2) * width
      axis.bar(
        x,
        height,
        width,
        color=COLOURS[kind],
        label=NAMES[kind] if place == 0 else None,
      )
      words = ""
      if kind != "ours":
        ratio = results.ratio(net, batch, what, kind)
        words = f"{ratio:.2f}x" if ratio else "failed"
      axis.annotate(
        words, (x, height), (0, 3), textcoords="offset points",
        ha="center", fontsize=7, rotation=90,
      )  # fmt: skip
  names = [f"{net.replace('_', ' ')}\n{batch}" for net, batch in places]
  axis.set_xticks(range(len(places)), names, fontsize=7)
  axis.set(
    ylabel="images per second",
    title=f"{what}, {results.about['device']} (above torch: ours / torch)",
    ylim=(0, 1.12 * axis.get_ylim()[1]),
  )
  axis.grid(axis="y", alpha=0.25)
  axis.spines[["top", "right"]].set_visible(False)


def fill(folder: Path, name: str, text: str) -> None:
  """Puts text between its marks in README.md.

  Args:
    folder: whose README.md is written; elsewhere than here, from the one here.
    name: of the marks.
    text: Markdown.
  """
  path = folder / "README.md"
  source = path if path.exists() else HERE / "README.md"
  begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
  filled, count = re.subn(
    f"{begin}.*{end}",
    lambda _: f"{begin}\n{text}\n\n{end}",
    source.read_text(),
    flags=re.DOTALL,
  )
  if not count:
    raise SystemExit(f"{source} has no {begin.strip()}")
  path.write_text(filled)


def write(folder: Path) -> None:
  """Writes tables and plot of all platforms.

  Raises:
    SystemExit: there is no row for what a run was to measure.
  """
  rows, about = read(folder)
  found = [Results(name, each, rows) for name, each in sorted(about.items())]
  if not found:
    raise SystemExit(f"{folder} has no results")
  text = "\n\n".join(tables(results) for results in found)
  draw(found, folder / "throughput.png")
  fill(folder, "tables", text)
