"""The report as one HTML file: tables by Jinja, learning curves by Bokeh.

Bokeh's script is copied into the page, which therefore needs no network.
"""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from bokeh import embed, models, plotting, resources

from alexnet_jax.tools.report import curves, reader, tables

_METRICS = {
  "top1_error": "top-1 error (%)",
  "top5_error": "top-5 error (%)",
  "loss": "loss (nats per image)",
  "learning_rate": "learning rate (conv weights)",
}
# Bokeh escapes the values. The style covers that of Bokeh, which has one theme.
_TOOLTIP = """<div style="background: var(--raised); color: var(--ink);
 margin: -5px; padding: 6px 10px; max-width: 260px; overflow-wrap: anywhere">
<b>@name</b> @split<br>@axis $snap_x{%.6g}: <b>$snap_y{%.5g}</b></div>"""


def render(found: reader.Found) -> str:
  """Returns the HTML of a report; nothing in the data can act as markup."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
    lstrip_blocks=True, loader=jinja2.FileSystemLoader(Path(__file__).parent),
  )  # fmt: skip
  environment.filters |= {"figure": figure, "label": label}
  # Bokeh needs the order of its keys, which Jinja would sort.
  environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
  groups = curves.groups_of(found.runs)
  lines = [line for index, group in enumerate(groups)
           for line in _lines(index, group)]  # fmt: skip
  metrics = {name for line in lines for name in line["y"]}
  splits = {line["split"] for line in lines}
  return environment.get_template("report.html").render(
    found=found,
    groups=groups,
    tables=tables.error_tables(found, groups),
    metrics={k: text for k, text in _METRICS.items() if k in metrics},
    splits=[split for split in reader.SPLITS if split in splits],
    differences=tables.config_differences(found.runs),
    bokeh=resources.Resources("inline", components=["bokeh"]).js_raw[0],
    data={"plot": embed.json_item(_chart()), "lines": lines},
  )


def _lines(index: int, group: curves.Group) -> list[dict[str, Any]]:
  """Returns the lines of a group, as the page's script expects them."""
  count = len(group.finished)
  drawn = [
    ("seed" if count > 1 else "only", x.name, x.curves)
    if x.run.outcome == reader.FINISHED
    else ("failed", f"{x.name} ({x.run.outcome})", x.curves)
    for x in group.seeds
  ]
  if count > 1:
    drawn.append(("mean", f"{group.name}, mean of {count}", group.means()))
  return [
    {
      "group": index,
      "kind": kind,
      "name": name,
      "split": split,
      "x": {axis: _rounded(x, axis) for axis, x in curve.x.items()},
      "y": {
        metric: [_rounded(x, metric) for x in values]
        for metric, values in curve.values.items()
      },
    }
    for kind, name, by_split in drawn
    for split, curve in by_split.items()
  ]


def _rounded(values: np.ndarray, name: str) -> list[float | None]:
  """Returns five digits; whole numbers as int, NaN as None, errors in %."""
  percent = values * 100 if "error" in name else values
  return [
    None if x != x else int(x) if x == int(x) else float(f"{x:.5g}")
    for x in percent.tolist()
  ]


def _chart() -> plotting.figure:
  """Returns an empty chart, which the page's script fills."""
  zoom = models.BoxZoomTool()
  plot = plotting.figure(
    sizing_mode="stretch_both", toolbar_location="above", active_drag=zoom,
    tools=[zoom, models.PanTool(), models.WheelZoomTool(), models.ResetTool()],
    background_fill_color=None, border_fill_color=None, outline_line_color=None,
    min_border_right=12,
  )  # fmt: skip
  plot.toolbar.logo = None
  plot.axis.minor_tick_line_color = None
  plot.axis.major_tick_in = 0
  plot.xgrid.visible = False
  bands, lines, ends = (
    models.ColumnDataSource({name: [] for name in columns.split()})
    for columns in (
      "xs ys colour alpha",
      "xs ys colour alpha dash width name split axis",
      "x y colour alpha marker name split axis",
    )
  )
  plot.patches(
    "xs", "ys", source=bands, name="bands", line_width=0, fill_color="colour",
    fill_alpha="alpha",
  )  # fmt: skip
  plot.multi_line(
    "xs", "ys", source=lines, name="lines", line_color="colour",
    line_dash="dash", line_alpha="alpha", line_width="width", line_join="round",
  )  # fmt: skip
  dots = plot.scatter(
    "x", "y", source=ends, name="ends", marker="marker", size=7,
    color="colour", alpha="alpha",
  )  # fmt: skip
  # An invisible wide line is what the pointer has to meet.
  wide = plot.multi_line("xs", "ys", source=lines, line_alpha=0, line_width=14)
  plot.add_tools(models.HoverTool(
    tooltips=_TOOLTIP, renderers=[wide, dots], limit=5, show_arrow=False,
    visible=False, formatters={"$snap_x": "printf", "$snap_y": "printf"},
  ))  # fmt: skip
  return plot


def label(column: str) -> str:
  """Returns the name of a figure as a heading."""
  return column.replace("_", " ") + " (%)" * ("error" in column)


def figure(value: float, column: str, digits: int = 4) -> str:
  """Returns a figure of a table as text, errors in per cent."""
  return f"{100 * value:.2f}" if "error" in column else f"{value:.{digits}g}"
