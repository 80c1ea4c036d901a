"""What a run says of itself before its first step."""

import shlex
from typing import Any

import jax

from alexnet_jax import networks, schedules
from alexnet_jax.runs.run import Run

# Of a run, the least part before its last drop (in run 145_half it is 47 of 95
# epochs), and the part before it in a schedule that is proposed.
LEAST, PROPOSED = 0.45, 0.85


def lines(run: Run) -> list[str]:
  """Returns lines about the net, its data, its steps and its checkpoints."""
  c, count = run.config, len(run.splits["train"])
  parameters = sum(row.parameters for row in networks.rows(run.net.network))
  nets = f"{c.ensemble} nets, each of " if c.ensemble > 1 else ""
  images = ", ".join(f"{len(x):,} {split}" for split, x in run.splits.items())
  epoch = float(schedules.steps_in(1, count, c.batch_size))
  megabytes = sum(x.nbytes for x in jax.tree.leaves(run.state)) / 1e6
  devices = run.mesh.devices.ravel()
  found = [
    f"net         {nets}{', '.join(c.network.layers)}; {parameters:,}"
    f" parameters; {c.crop_size_px} of {c.image_size_px} px",
    f"data        {c.data_dir}: {c.num_classes:,} classes; {images} images",
    f"steps       {c.batch_size} images each; {epoch:,.6g} an epoch,"
    f" {run.total_steps:,} in all",
    f"devices     {len(devices)} {devices[0].device_kind}, layout {c.layout};"
    f" {c.compute_dtype}, products of {c.matmul_precision} precision",
    f"checkpoint  {megabytes:,.1f} MB; {run.workdir} keeps the newest"
    f" {c.checkpoints_to_keep}, and the best",
  ]
  note = misfit(c, count, run.total_steps)
  return [*found, f"note: {note}"] if note else found


def misfit(config: Any, num_examples: int, total_steps: int) -> str:
  """Returns how drops of the rate by epoch do not fit a run, "" if they do."""
  drops, batch_size = config.learning_rate_drop_epochs, config.batch_size
  if config.schedule != "epochs" or not drops:
    return ""
  last = schedules.step_of_epoch(max(drops), num_examples, batch_size)
  if total_steps < 10 or LEAST * total_steps <= last < total_steps:
    return ""
  epochs = total_steps * batch_size / num_examples
  scale = PROPOSED * epochs / max(drops)
  fitting = tuple(float(f"{epoch * scale:.3g}") for epoch in drops)
  what = "the last would never happen"
  if last < total_steps:
    what = "most of it would have the lowest rate"
  return (
    f"learning_rate_drop_epochs={tuple(drops)} do not fit a run of"
    f" {epochs:.4g} epochs: {what}; these would: "
    + shlex.quote(f"--config.learning_rate_drop_epochs={fitting}")
  )
