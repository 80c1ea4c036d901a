"""Turns weights of other programs into a run, and a run into their files.

  alexnet convert --from=alexnet.pth --output=DIR
  alexnet convert --from=RUN --to=onnx --output=DIR

It reads torchvision's alexnet (.pth, .safetensors), Caffe's bvlc_alexnet and
bvlc_reference_caffenet (.caffemodel), and its own .pth and .safetensors. It
writes safetensors, torch, onnx and stablehlo, with config, class names and mean
image beside it. What it writes as safetensors can be used like a run.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax import networks
from alexnet_jax.data import records, statistics
from alexnet_jax.runs import checkpoint, run_files, torch_layout
from alexnet_jax.runtime import cli, errors, files
from alexnet_jax.tools import inference
from alexnet_jax.tools.convert import exports, nets, weight_files


def import_file(
  path: Path,
  output: Path,
  *,
  net: str | None = None,
  classes: str = "",
  data_dir: str = "",
) -> list[str]:
  """Writes a file of weights as a run; returns lines that describe it."""
  loaded = weight_files.read(path)
  weights = dict(loaded.arrays)
  if loaded.is_ours:
    if net or classes:
      raise errors.InputError(
        f"this package wrote {str(path)!r}, with net and classes beside it;"
        " drop --net and --classes."
      )
    config, names, stats = _read_metadata(path, loaded)
    lines = [f"{path} was written by this package; its config is beside it."]
  else:
    try:
      name, config = nets.detect(loaded, net)
    except errors.InputError as e:
      raise errors.InputError(f"{str(path)!r}: {e}") from e
    known = nets.NETS[name]
    names = _class_names(classes, data_dir, config.num_classes)
    shape = (config.image_size_px, config.image_size_px, 3)
    mean_image = np.full(shape, known.mean, np.float32)
    stats = statistics.Statistics(mean_image, *nets.COLOURS)
    means = ", ".join(f"{x:.4g}" for x in known.mean)
    scales = ", ".join(f"{x:.4g}" for x in known.scale)
    lines = [
      f"{path} is {name} (config {known.config}).",
      f"Its input is RGB of 0..255 less the mean ({means}), times {scales}."
      " Mean and scale are kept with the weights.",
    ]
    if known.bgr:
      weights["conv1.weight"] = weights["conv1.weight"][:, ::-1]
      lines.append("conv1 took blue first; its filters now take RGB.")
  config.unlock()
  config.data_dir = data_dir or config.data_dir
  params = torch_layout.from_torch(networks.from_config(config), weights)
  del loaded, weights  # Hundreds of megabytes, not needed any more.
  with _new_folder(output) as folder:
    run_files.write_config(folder, config)
    run_files.write_run_metadata(folder, names, stats)
    checkpoint.write_params(folder, params)
  lines.append(f"wrote {output}: a net of {len(names)} classes")
  return lines


def export_run(
  workdir: str | Path, output: Path, kind: str, step: str = "newest"
) -> list[str]:
  """Writes a run as a kind of `KINDS`; returns lines that describe the file."""
  model = inference.load_single(workdir, step)
  with _new_folder(output) as folder:
    run_files.write_config(folder, model.config)
    run_files.write_run_metadata(folder, model.class_names, model.statistics)
    file = exports.write(model, kind, folder).name
  return [
    exports.KINDS[kind].about.format(size=model.config.crop_size_px),
    f"wrote {output / file}, with config, class names and mean image beside it",
  ]


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
  """Yields a folder that becomes `output` when it is complete."""
  if output.exists():
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as parent:
      folder = Path(parent) / output.name
      folder.mkdir()
      yield folder
      folder.rename(output)
  except errors.InputError:
    raise
  # TensorStore raises a ValueError if the disk is full, torch a RuntimeError.
  except (OSError, RuntimeError, ValueError) as e:
    raise errors.InputError(
      f"output={str(output)!r} cannot be written ({errors.reason(e)}); choose"
      " another place, with room."
    ) from e


def _class_names(file: str, data_dir: str, count: int) -> tuple[str, ...]:
  """Returns names from a file, else those of a data set, else numbers."""
  names = tuple(str(label) for label in range(count))
  if file:
    try:
      lines = files.read(file).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as e:
      raise errors.InputError(
        f"--classes={file!r} cannot be read ({e}); give one name a line."
      ) from e
    names = tuple(line.strip() for line in lines if line.strip())
  elif data_dir:
    names = records.open_directory(Path(data_dir)).class_names
  if len(names) != count:
    raise errors.InputError(
      f"{file or data_dir!r} has {len(names)} class names, but the net has"
      f" {count} classes; give one name for each, in the order of the labels."
    )
  return names


def _read_metadata(
  file: Path, loaded: torch_layout.LoadedWeights
) -> tuple[Any, tuple[str, ...], statistics.Statistics]:
  """Returns config, class names and statistics beside a file of ours."""
  try:
    config = run_files.read_config(file.parent)
    size_px = config.image_size_px
    names, stats = run_files.read_run_metadata(file.parent, size_px)
  except errors.InputError as e:
    raise errors.InputError(
      f"this package wrote {str(file)!r}, and needs what it wrote beside it:"
      " config.json, class_names.json, mean_image.npy and colour_pca.json; put"
      " them into its folder."
    ) from e
  count, which = nets.differences(networks.from_config(config), loaded)
  if count:
    raise errors.InputError(
      f"the config beside {str(file)!r} is of another net: {which}. Copy both"
      " again."
    )
  return config, names, stats


def main(_) -> None:
  options: Any = flags.FLAGS
  source, output = options["from"].value, Path(options.output)
  if options.to:
    lines = export_run(source, output, options.to, options.step)
  else:
    lines = import_file(
      Path(source),
      output,
      net=options.net,
      classes=options.classes,
      data_dir=options.data_dir,
    )
  for line in lines:
    cli.echo(line)


def define_flags() -> None:
  flags.DEFINE_string("from", None, "File of weights, or a run.", required=True)
  flags.DEFINE_string("output", None, "Folder to make.", required=True)
  flags.DEFINE_enum("to", None, list(exports.KINDS), "What a run becomes.")
  flags.DEFINE_string("step", "newest", "Of a run: newest, best or a step.")
  flags.DEFINE_enum("net", None, list(nets.NETS), "The net, if several fit.")
  flags.DEFINE_string("classes", "", "File of class names, one a line.")
  flags.DEFINE_string("data_dir", "", "Prepared data set, for evaluate.")
