"""Turns weights of other programs into a run, and a run into their files.

  alexnet convert --from=alexnet.pth --output=DIR
  alexnet convert --from=RUN --to=onnx --output=DIR

It reads torchvision's alexnet (.pth, .safetensors), Caffe's bvlc_alexnet and
bvlc_reference_caffenet (.caffemodel, or a dictionary in .npy), ONNX files of
these, and its own. It writes safetensors, torch, onnx and stablehlo, with
config, class names and mean image beside it.
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
from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import inference
from alexnet_jax.tools.convert import arrays, caffe, exports, files, nets


def import_file(
  path: Path,
  output: Path,
  *,
  net: str | None = None,
  mean: str = "",
  classes: str = "",
  data_dir: str = "",
) -> list[str]:
  """Writes a file of weights as a run.

  Args:
    path: of the file.
    output: folder to make.
    net: name in `nets.NETS`; needed if the file fits several.
    mean: R,G,B of 0..255, or Caffe's file; by default the net's.
    classes: file of class names, one a line.
    data_dir: prepared data set of its classes, for `evaluate`.

  Returns:
    Lines that describe the run.

  Raises:
    InputError: the file is of no known net, or an option does not fit it.
  """
  loaded = files.read(path)
  weights = loaded.arrays
  try:
    if loaded.is_ours and (net or mean or classes):
      raise errors.InputError(
        "this package wrote the file, with net, mean and classes beside it;"
        " drop --net, --mean and --classes."
      )
    if loaded.is_ours:
      config, names, held = _read_metadata(path.parent, loaded)
      lines = [f"{path} was written by this package; its config is beside it."]
    else:
      (name, *others), config = nets.detect(loaded, net)
      known = nets.NETS[name]
      names = _class_names(classes, data_dir, config.num_classes)
      mean = mean or ",".join(map(str, known.mean))
      image = _mean_image(mean, config.image_size_px)
      held = statistics.Statistics(image, *nets.COLOURS)
      lines = [f"{path} is {name} (config {known.config})."]
      lines += [
        f"It may also be {other}, whose weights look the same; if it is, pass"
        f" --net={other}."
        for other in others
      ]
      if known.bgr:
        first = weights["conv1.weight"][:, ::-1]
        weights = {**weights, "conv1.weight": first}
        lines.append("conv1 took blue first; its filters now take RGB.")
      means = ", ".join(f"{x:.4g}" for x in image.mean((0, 1), np.float64))
      scales = ", ".join(f"{x:.4g}" for x in config.input_scale)
      lines.append(
        f"Its input is RGB of 0..255 less the mean ({means} on average), times"
        f" {scales}. Mean and scale are kept with the weights."
      )
    weights = files.to_float32(weights)
  except errors.InputError as e:
    raise errors.InputError(f"{str(path)!r}: {e}") from e
  config.unlock()
  if data_dir:
    if records.open_directory(Path(data_dir)).class_names != names:
      raise errors.InputError(
        f"--data_dir={data_dir!r} has other classes than the net; give the"
        " data of its classes, or leave --data_dir out."
      )
    config.data_dir = data_dir
  params = arrays.from_torch(networks.from_config(config), weights)
  count = sum(values.size for values in weights.values())
  del loaded, weights  # Hundreds of megabytes, not needed any more.
  with _new_folder(output) as folder:
    run_files.write_config(folder, config)
    run_files.write_run_metadata(folder, names, held)
    checkpoint.write_params(folder, params)
  lines.append(f"wrote {output}: {count:,} parameters, {len(names)} classes")
  return lines


def export_run(
  workdir: Path, output: Path, kind: str, step: str = "newest"
) -> list[str]:
  """Writes a run's net as a file of another program.

  Args:
    workdir: of the run.
    output: folder to make.
    kind: of `exports.KINDS`.
    step: checkpoint, see `inference.load`.

  Returns:
    Lines that describe the file.
  """
  model = inference.load(workdir, step)
  with _new_folder(output) as folder:
    run_files.write_config(folder, model.config)
    metadata = run_files.read_run_metadata(workdir)
    run_files.write_run_metadata(folder, *metadata)
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


def _mean_image(text: str, size_px: int) -> np.ndarray:
  """Returns [S, S, 3] in RGB, of `R,G,B` or of a file of Caffe's in BGR."""
  file = Path(text)
  try:
    if file.suffix == ".npy":
      mean = np.load(file, allow_pickle=False)
    elif file.suffix == ".binaryproto":
      (mean,) = caffe.read_blob(file.read_bytes())
    else:
      mean = np.array([float(word) for word in text.split(",")]).reshape(3)
      mean = np.tile(mean[::-1, None, None], (1, size_px, size_px))
    if mean.shape != (3, size_px, size_px):
      raise ValueError(f"its shape is {list(mean.shape)}")
    if not ((mean >= 0) & (mean <= 255)).all():
      raise ValueError("some of it is not from 0 to 255")
    return mean[::-1].transpose(1, 2, 0).astype(np.float32)
  except Exception as e:
    raise errors.InputError(
      f"--mean={text!r} is no mean image ({e}); give R,G,B, or Caffe's file of"
      f" 3 x {size_px} x {size_px} numbers, .npy or .binaryproto."
    ) from e


def _class_names(file: str, data_dir: str, count: int) -> tuple[str, ...]:
  """Returns names from a file, else those of a data set, else numbers."""
  names = tuple(str(label) for label in range(count))
  if file:
    try:
      lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
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
  folder: Path, loaded: arrays.LoadedWeights
) -> tuple[Any, tuple[str, ...], statistics.Statistics]:
  """Returns config, class names and statistics beside a file of ours."""
  try:
    config = run_files.read_config(folder)
    names, held = run_files.read_run_metadata(folder)
  except errors.InputError as e:
    raise errors.InputError(
      "this package wrote the file, and needs what it wrote beside it:"
      " config.json, class_names.json, mean_image.npy and colour_pca.json; put"
      " them into its folder."
    ) from e
  if differing := nets.differences(networks.from_config(config), loaded):
    raise errors.InputError(
      f"the config beside it is of another net: {errors.first_few(differing)}."
      " Copy both again."
    )
  return config, names, held


def main(_) -> None:
  """Runs the command."""
  options: Any = flags.FLAGS
  path, output = Path(options["from"].value), Path(options.output)
  of_files = ("net", "mean", "classes", "data_dir")
  for name in of_files if options.to else ("step",):
    if options[name].present:
      what = "files, not runs" if options.to else "--to"
      raise errors.InputError(f"--{name} is for {what}; drop it.")
  if options.to:
    lines = export_run(path, output, options.to, options.step)
  else:
    given = {name: options[name].value for name in of_files}
    lines = import_file(path, output, **given)
  print("\n".join(lines))


def _define_flags() -> None:
  flags.DEFINE_enum("to", None, list(exports.KINDS), "What a run becomes.")
  flags.DEFINE_enum(
    "net", None, list(nets.NETS), "Which net it is, if a file fits several."
  )
  for name, default, text in (
    ("from", None, "File of weights, or workdir of a run."),
    ("output", None, "Folder to make."),
    ("step", "newest", "Checkpoint: newest, best (by validation) or a step."),
    ("mean", "", "R,G,B of 0..255, or Caffe's .npy or .binaryproto."),
    ("classes", "", "File of class names, one a line."),
    ("data_dir", "", "Prepared data set of its classes, for evaluate."),
  ):
    flags.DEFINE_string(name, default, text, required=default is None)


def command() -> None:
  """`alexnet convert`."""
  cli.run(main, _define_flags)
