"""One HTML file about runs: curves, errors, configs, filters, confusions.

  alexnet report RUN_OR_EXPERIMENT... --output=report.html

RUN is a workdir, or a folder of several; EXPERIMENT has `results.csv`, with a
row for each arm and seed, and `runs/ARM-SEED/`. The file needs no network.
`--figures=DIR` draws plots for print as well.
"""

import base64
import collections
import io
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax.parallel import placement
from alexnet_jax.runs import opened
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools.figures import tiles
from alexnet_jax.tools.report import reader

_PAGE = Path(__file__).with_name("report.html")
_PLACE = "@DATA@"  # In the page, where the data go.
# Points of a curve are twice as many; all curves together have these.
_BUCKETS, _FEWEST_BUCKETS, _ALL_BUCKETS = 150, 40, 40_000
_CONFUSIONS = 20
CONFIDENCE = 0.95
_OWN_COLUMNS = (
  ("train", "loss"),
  ("train", "top1_error"),
  ("validation", "top1_error"),
  ("validation", "top5_error"),
  ("test", "top1_error"),
  ("test", "top5_error"),
)


def buckets(count: int, most: int) -> np.ndarray:
  """Returns the bounds of at most about `most` buckets of `count` points.

  A third of them are spaced evenly on a logarithmic scale, so that the first
  steps are not lost there.
  """
  if count <= 2 * most:
    return np.arange(count + 1)
  even = np.linspace(0, count, most - most // 3 + 1)
  growing = np.geomspace(1, count, most // 3)
  return np.unique(np.concatenate([even, growing]).astype(int))


def reduce(
  step: np.ndarray, epoch: np.ndarray, value: np.ndarray, most: int
) -> dict[str, Any]:
  """Returns few points of a curve that look like all of them.

  Args:
    step: float64 [N], rising.
    epoch: float64 [N], may hold NaN.
    value: float64 [N], finite.
    most: buckets. A curve of at most twice as many points is not reduced.

  Returns:
    `step`, `epoch` and `value` of the smallest and largest value of each
    bucket and of the last point; and, if it was reduced, `mean`, which has
    step, epoch and value on average over each bucket.
  """
  bounds = buckets(len(value), most)
  kept = {len(value) - 1}
  for low, high in itertools.pairwise(bounds):
    part = value[low:high]
    kept |= {low + int(part.argmin()), low + int(part.argmax())}
  at = np.array(sorted(kept))

  def points(*columns: np.ndarray) -> dict[str, Any]:
    names = ("step", "epoch", "value")
    return {
      name: [_round(x) for x in column.tolist()]
      for name, column in zip(names, columns, strict=True)
    }

  curve = points(step[at], epoch[at], value[at])
  if len(bounds) <= len(value):
    sizes = np.diff(bounds)
    means = (
      np.add.reduceat(column, bounds[:-1]) / sizes
      for column in (step, epoch, value)
    )
    curve["mean"] = points(*means)
  return curve


def _round(value: float) -> float | int | None:
  """Returns five digits; whole numbers stay whole, NaN is None."""
  if not math.isfinite(value):
    return None
  if value == int(value):
    return int(value)
  return float(f"{value:.5g}")


def interval(values: Sequence[float]) -> tuple[float, float | None]:
  """Returns the mean and half the width of its 95 % interval (Student's t).

  Args:
    values: one or more; of one the width is not known, which is None.
  """
  mean = math.fsum(values) / len(values)
  if len(values) < 2:
    return mean, None
  from scipy import special  # Takes long to import.

  quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
  deviation = np.std(np.asarray(values, np.float64), ddof=1)
  return mean, float(quantile * deviation / math.sqrt(len(values)))


def curve_runs(found: reader.Found) -> tuple[list[Any], list[Any]]:
  """Returns groups of runs, and the runs with their curves.

  A group is an arm, a run, or the nets of an ensemble, whose lines of all
  together are a group of their own. `column` is a group's in the configs.
  """
  groups: dict[str, dict[str, Any]] = {}
  drawn = []
  listed: list[
    tuple[reader.Run, int | None, dict[reader.Key, reader.Series]]
  ] = []
  for experiment, run in found.runs:
    column = _column(found, experiment, run)
    members = sorted({m for m, _ in run.series if m is not None})
    together: list[int | None] = [None]
    nets = members + together if members and run.arm is None else together
    for member in nets:
      name, group = run.name, column
      if members and run.arm is None:
        what = "all together" if member is None else f"net {member}"
        name = f"{run.name}, {what}"
        group = name if member is None else _each_net_of(run)
      series = {k: s for k, s in run.series.items() if k[0] == member}
      if not series and (members or not run.series):
        continue
      held = groups.setdefault(
        group,
        {
          "name": group,
          "column": column,
          "experiment": experiment,
          "runs": [],
        },
      )
      held["runs"].append(len(drawn))
      listed.append((run, member, series))
      drawn.append(
        {
          "name": name,
          "group": list(groups).index(group),
          "outcome": run.outcome or reader.FINISHED,
        }
      )
  most = _buckets_for(series for _, _, series in listed)
  for (run, member, series), held in zip(listed, drawn, strict=True):
    held["rows"] = sum(len(part.step) for part in series.values())
    held["curves"] = {
      split: _curves(series[member, split], most)
      for split in _in_order(split for _, split in series)
    }
    held["time"] = _times(run, most)
  return list(groups.values()), drawn


def _each_net_of(run: reader.Run) -> str:
  return f"{run.name}, each net"


def _column(
  found: reader.Found, experiment: str | None, run: reader.Run
) -> str:
  """Returns the name of an arm or run, which tells experiments apart."""
  if run.arm is None or experiment is None:
    return run.name
  alone = len(found.experiments) == 1 and all(e for e, _ in found.runs)
  return run.arm if alone else f"{experiment}/{run.arm}"


def _in_order(splits: Iterable[str]) -> list[str]:
  return sorted(
    splits,
    key=lambda s: (reader.SPLITS.index(s) if s in reader.SPLITS else 9, s),
  )


def _buckets_for(parts: Iterable[dict[reader.Key, reader.Series]]) -> int:
  count = sum(
    np.isfinite(series.values[metric]).any()
    for part in parts
    for series in part.values()
    for metric in reader.DRAWN
  )
  return max(_FEWEST_BUCKETS, min(_BUCKETS, _ALL_BUCKETS // max(1, int(count))))


def _curves(series: reader.Series, most: int) -> dict[str, Any]:
  curves = {}
  for metric in reader.DRAWN:
    value = series.values[metric]
    there = np.isfinite(value)
    if there.any():
      curves[metric] = reduce(
        series.step[there], series.epoch[there], value[there], most
      )
  return curves


def _times(run: reader.Run, most: int) -> list[list[Any]] | None:
  """Returns steps, and the minutes of training up to each of them.

  None where the lines or the config do not say; of an ensemble they do not say
  whose images were counted.
  """
  batch_size = run.config.get("batch_size")
  series = run.series.get((None, "train"))
  if series is None or any(member is not None for member, _ in run.series):
    return None
  rate = series.values["images_per_second"]
  if type(batch_size) is not int or not (np.nan_to_num(rate) > 0).all():
    return None
  minutes = np.cumsum(np.diff(series.step, prepend=0) * batch_size / rate) / 60
  at = np.unique(np.append(buckets(len(minutes), most)[1:] - 1, 0))
  points = np.stack([series.step[at], minutes[at]])
  return [[0, *(_round(x) for x in row.tolist())] for row in points]


def tables(found: reader.Found, groups: list[Any]) -> list[dict[str, Any]]:
  """Returns a table of errors for each experiment, and one of other runs.

  Figures are fractions; those of runs that have failed are not in the means.
  """
  made = []
  for experiment in found.experiments.values():
    arms = collections.defaultdict(list)
    for result in experiment.results:
      arms[result.arm].append(result)
    columns = [
      name
      for name in experiment.columns
      if any(name in result.figures for result in experiment.results)
    ]
    rows = []
    for arm, results in arms.items():
      good = [r for r in results if r.outcome == reader.FINISHED]
      bad = [r for r in results if r.outcome != reader.FINISHED]
      rows.append(
        {
          "name": arm,
          "n": len(good),
          "failed": [[r.seed, r.outcome or "no outcome"] for r in bad],
          "cells": [
            _cell([r.figures[name] for r in good if name in r.figures])
            for name in columns
          ],
        }
      )
    made.append(_table(experiment.name, "arm", columns, rows))
  own = _own_rows(found, groups)
  if own:
    columns = [f"{split} {metric}" for split, metric in _OWN_COLUMNS]
    used = [
      at for at in range(len(columns)) if any(row["cells"][at] for row in own)
    ]
    for row in own:
      row["cells"] = [row["cells"][at] for at in used]
    made.append(_table("", "run", [columns[at] for at in used], own))
  return made


def _own_rows(found: reader.Found, groups: list[Any]) -> list[dict[str, Any]]:
  by_name = {run.name: run for _, run in found.runs}
  rows = []
  for group in groups:
    if group["experiment"] is not None:
      continue
    run = by_name[group["column"]]
    each = group["name"] == _each_net_of(run)
    members = (
      sorted({m for m, _ in run.series if m is not None}) if each else [None]
    )
    rows.append(
      {
        "name": group["name"],
        "n": len(members),
        "failed": [],
        "cells": [
          _cell(_last(run.series.get((m, split)), metric) for m in members)
          for split, metric in _OWN_COLUMNS
        ],
      }
    )
  return rows


def _last(series: reader.Series | None, metric: str) -> float | None:
  value = series.values[metric] if series else np.array([])
  value = value[np.isfinite(value)]
  return float(value[-1]) if len(value) else None


def _cell(values: Iterable[float | None]) -> dict[str, Any] | None:
  held = [value for value in values if value is not None]
  if not held:
    return None
  mean, half = interval(held)
  return {
    "mean": _round(mean),
    "half": None if half is None else _round(half),
    "values": [_round(value) for value in held],
  }


def _table(
  title: str, what: str, columns: list[str], rows: list[Any]
) -> dict[str, Any]:
  heads = [
    {
      "name": name,
      "label": name.replace("_", " ")
      .replace("top1", "top-1")
      .replace("top5", "top-5"),
      "percent": "error" in name,
    }
    for name in columns
  ]
  return {"title": title, "what": what, "columns": heads, "rows": rows}


def config_differences(columns: dict[str, list[dict[str, Any]]]) -> Any:
  """Returns the fields that are not the same everywhere.

  Args:
    columns: flattened configs of the runs of each column.

  Returns:
    `columns`, their names, and `rows` of [field, cells]. A cell has the texts
    of a column's values in order of appearance, None for a field that is not
    there.
  """
  known = {name: configs for name, configs in columns.items() if configs}
  fields = sorted({x for held in known.values() for each in held for x in each})
  rows = []
  for field in fields:
    cells = [
      list(
        dict.fromkeys(
          json.dumps(each[field], ensure_ascii=False) if field in each else None
          for each in configs
        )
      )
      for configs in known.values()
    ]
    sets = {frozenset(cell) for cell in cells}
    if len(sets) > 1 or (len(cells) == 1 and len(cells[0]) > 1):
      rows.append([field, cells])
  return {"columns": list(known), "rows": rows}


def worst_confusions(held: Sequence[reader.Run]) -> dict[str, Any] | None:
  """Returns the most frequent errors of runs of the same classes.

  Args:
    held: runs; those without counts, or of other images than the first, are
      left out.
  """
  held = [run for run in held if run.confusions]
  if not held:
    return None
  first = held[0]
  assert first.confusions
  about = {key: first.confusions.get(key) for key in ("split", "views")}
  total: collections.Counter[tuple[int, int]] = collections.Counter()
  used = []
  for run in held:
    assert run.confusions
    if run.class_names == first.class_names and about == {
      key: run.confusions.get(key) for key in about
    }:
      used.append(run)
      for label, predicted, count in run.confusions["counts"]:
        total[label, predicted] += count
  images: collections.Counter[int] = collections.Counter()
  for (label, _), count in total.items():
    images[label] += count
  wrong = [x for x in total.items() if x[0][0] != x[0][1] and x[1]]
  wrong.sort(key=lambda x: (-x[1], x[0]))

  def name(label: int) -> str:
    names = first.class_names
    return names[label] if label < len(names) else f"class {label}"

  return {
    "runs": len(used),
    "images": sum(total.values()),
    "wrong": sum(count for _, count in wrong),
    **{key: None if x is None else str(x) for key, x in about.items()},
    "rows": [
      [name(a), name(b), count, _round(count / images[a])]
      for (a, b), count in wrong[:_CONFUSIONS]
    ],
  }


def draw_filters(
  kernel_HxWxCxN: np.ndarray, towers: int
) -> tuple[bytes, int, int]:
  """Returns `tiles.filters` as a PNG, and its width and height in pixels."""
  from PIL import Image

  picture = tiles.filters(kernel_HxWxCxN, towers)
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG", optimize=True)
  return buffer.getvalue(), picture.shape[1], picture.shape[0]


def _filters(found: reader.Found) -> list[dict[str, Any]]:
  """Returns pictures of conv1 of the runs that have a checkpoint."""
  pictures = []
  for _, run in found.runs:
    if not any((run.folder / "checkpoints").glob("[0-9]*")):
      continue
    try:
      step, kernels = _read_kernels(run.folder)
      towers = run.config.get("network.towers")
      towers = towers if type(towers) is int else 1
      for number, kernel in enumerate(kernels):
        if kernel.ndim != 4 or kernel.shape[2] != 3:
          raise ValueError(f"conv1 is {kernel.shape}, not of colours")
        png, width, height = draw_filters(kernel, towers)
        pictures.append(
          {
            "name": run.name + (f", net {number}" if len(kernels) > 1 else ""),
            "step": step,
            "count": kernel.shape[-1],
            "size": list(kernel.shape[:2]),
            "width": width,
            "height": height,
            "png": base64.b64encode(png).decode(),
          }
        )
    # Orbax has errors of many kinds for what it cannot read.
    except Exception as e:
      reason = " ".join(str(e).split())[:300] or type(e).__name__
      found.notes.append(
        f"{str(run.folder)!r}: its checkpoint cannot be read ({reason}); no"
        " filters of it are shown."
      )
  return pictures


def _read_kernels(folder: Path) -> tuple[int, list[np.ndarray]]:
  import jax  # It and the net take seconds, and most reports need neither.

  # The accelerator may be busy with the very run.
  jax.config.update("jax_platforms", "cpu")

  run = opened.open_run(folder, placement.make_mesh())
  return run.step, [
    np.asarray(params["features"]["conv1"]["kernel"], np.float32)
    for params in run.members
  ]


def collect(found: reader.Found) -> dict[str, Any]:
  """Returns all that the page shows, as JSON.

  Args:
    found: from `runs.read`; its notes get a line for each checkpoint that
      cannot be read.
  """
  groups, drawn = curve_runs(found)
  columns: dict[str, list[reader.Run]] = {}
  for experiment, run in found.runs:
    columns.setdefault(_column(found, experiment, run), []).append(run)
  confusions = []
  for name, held in columns.items():
    good = [run for run in held if run.outcome in (None, reader.FINISHED)]
    if worst := worst_confusions(good):
      confusions.append({"name": name, **worst})
  outcomes = [r.outcome for x in found.experiments.values() for r in x.results]
  return {
    "counts": {
      "experiments": len(found.experiments),
      "runs": len(found.runs),
      "failed": sum(outcome != reader.FINISHED for outcome in outcomes),
    },
    "groups": groups,
    "runs": drawn,
    "tables": tables(found, groups),
    "effects": [
      {"title": experiment.name, "rows": experiment.effects}
      for experiment in found.experiments.values()
      if experiment.effects
    ],
    "config": config_differences(
      {
        name: [run.config for run in held if run.config]
        for name, held in columns.items()
      }
    ),
    "filters": _filters(found),
    "confusions": confusions,
    "notes": found.notes,
  }


def page(data: dict[str, Any]) -> str:
  """Returns the HTML of the report.

  Args:
    data: from `collect`. Nothing in it can end the script element it is in.
  """
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for mark in "<>&":
    text = text.replace(mark, f"\\u{ord(mark):04x}")
  before, after = _PAGE.read_text(encoding="utf-8").split(_PLACE)
  return before + text + after


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  options = flags.FLAGS
  output = Path(options.output)
  if len(argv) < 2:
    raise errors.InputError(
      "no run is named; write alexnet report runs/quickstart"
      " --output=report.html."
    )
  # Another ending would be that of what a run has left.
  there = output.exists() and not output.is_file()
  if there or output.suffix != ".html" or not output.parent.is_dir():
    raise errors.InputError(
      f"--output={options.output!r} must be an .html file in a folder that"
      " exists; make the folder, or name such a file."
    )
  if options.figures == "":
    raise errors.InputError("--figures='' must name a folder for the plots.")
  found = reader.read([Path(name) for name in argv[1:]])
  data = collect(found)
  for note in data["notes"]:
    print(f"note: {note}", file=sys.stderr)
  if options.figures:
    cli.make_folder("figures", Path(options.figures))
  with cli.replacing(output) as new:
    new.write_text(page(data), encoding="utf-8")
  size = output.stat().st_size / 1e6
  print(f"wrote {output}: {len(found.runs)} runs, {size:.2f} MB")
  if options.figures:
    from alexnet_jax.tools.figures import plots

    folder = Path(options.figures)
    for name in plots.draw_all(data, folder):
      print(f"wrote {folder / name}")


def _define_flags() -> None:
  flags.DEFINE_string("output", "report.html", "HTML file to write.")
  flags.DEFINE_string("figures", None, "Folder for plots as PNG and PDF.")


def command() -> None:
  """`alexnet report`."""
  cli.run(main, _define_flags, takes_files=True)
