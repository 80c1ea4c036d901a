"""Weights of other systems as a run, and a run as a file of theirs.

  alexnet convert --from=alexnet.pth --output=DIR
  alexnet convert --from=RUN --to=onnx --output=DIR

In: torchvision's alexnet (.pth, .safetensors), Caffe's bvlc_alexnet and
bvlc_reference_caffenet (.caffemodel; .npy, the dictionary), ONNX of these
(.onnx), and what was written here. Out: safetensors, torch, onnx, stablehlo,
with config, class names and mean image beside it.
"""

import contextlib
import itertools
import os
import shutil
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


@contextlib.contextmanager
def _making(output: Path) -> Iterator[Path]:
  """Yields a folder that takes the place of `output` when all is in it.

  Raises:
    InputError: `output` exists, or cannot be written.
  """
  if not str(output).isprintable():
    raise errors.InputError(
      f"output={str(output)!r} is not all text; choose another name."
    )
  if os.path.lexists(output):
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  work = output.with_name(f".{output.name}.{os.getpid()}")
  try:
    work.mkdir(parents=True)
    yield work
    work.rename(output)
  except errors.InputError:
    raise
  # TensorStore tells a full disk by a ValueError.
  except (OSError, ValueError) as e:
    reason = getattr(e, "strerror", None) or " ".join(str(e).split())[:100]
    raise errors.InputError(
      f"output={str(output)!r} cannot be written ({reason}); choose another"
      " place, with room."
    ) from e
  finally:
    shutil.rmtree(work, ignore_errors=True)


def _write_about(
  folder: Path, config: Any, names: tuple[str, ...], held: statistics.Statistics
) -> None:
  """Writes what a run has beside its weights."""
  run_files.write_config(folder, config)
  run_files.write_run_metadata(folder, names, held)


def _mean_image(text: str, size_px: int) -> np.ndarray:
  """Returns [S, S, 3] in RGB of R,G,B or of a file of Caffe's, blue first.

  Raises:
    InputError: it is neither.
  """
  file = Path(text)
  try:
    if file.suffix == ".npy":
      mean = np.load(file, allow_pickle=False)
    elif file.suffix == ".binaryproto":
      mean = caffe.read_blob(file.read_bytes())
    else:
      mean = np.array([float(word) for word in text.split(",")]).reshape(3)
      mean = np.tile(mean[::-1, None, None], (1, size_px, size_px))
    while mean.ndim > 3:
      (mean,) = mean
    if mean.shape != (3, size_px, size_px):
      raise ValueError(f"it is {list(mean.shape)}")
    if not ((mean >= 0) & (mean <= 255)).all():
      raise ValueError("some of it is not from 0 to 255")
    return mean[::-1].transpose(1, 2, 0).astype(np.float32)
  except Exception as e:
    raise errors.InputError(
      f"--mean={text!r} is no mean image ({e}); give R,G,B, or Caffe's file of"
      f" 3 x {size_px} x {size_px} numbers, .npy or .binaryproto."
    ) from e


def _class_names(file: str, data_dir: str, count: int) -> tuple[str, ...]:
  """Returns names from a file, else those of a data set, else numbers.

  Raises:
    InputError: they cannot be read, or are not so many.
  """
  if file:
    try:
      text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:
      raise errors.InputError(
        f"--classes={file!r} cannot be read ({e}); give a file of names, one a"
        " line."
      ) from e
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
  elif data_dir:
    names = records.open_directory(Path(data_dir)).class_names
  else:
    names = tuple(str(label) for label in range(count))
  if len(names) != count:
    raise errors.InputError(
      f"{file or data_dir!r} has {len(names)} class names, but the net"
      f" {count} classes; give one a class, in the order of its labels."
    )
  return names


def _check_data(data_dir: str, names: tuple[str, ...]) -> None:
  """Raises InputError where a data set is missing or has other classes."""
  held = records.open_directory(Path(data_dir)).class_names
  if held != names:
    pairs = itertools.zip_longest(held, names, fillvalue="no class")
    label, (there, here) = next(
      (k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1]
    )
    raise errors.InputError(
      f"--data_dir={data_dir!r} has other classes than the net: label {label}"
      f" is {there!r}, not {here!r}; name the data of its classes, without"
      " --classes."
    )


def _own(
  path: Path, found: files.Found
) -> tuple[Any, tuple[str, ...], statistics.Statistics]:
  """Returns config, class names and statistics of a file written here.

  Raises:
    InputError: they are not beside it, or of another net.
  """
  try:
    config = run_files.read_config(path.parent).unlock()
    names, held = run_files.read_run_metadata(path.parent)
  except errors.InputError as e:
    raise errors.InputError(
      f"{str(path)!r} was written here, with files that must be beside it:"
      " config.json, class_names.json, mean_image.npy and colour_pca.json;"
      " put them there."
    ) from e
  if differing := nets.differences(networks.from_config(config), found):
    raise errors.InputError(
      f"{str(path)!r} is not what the config beside it describes:"
      f" {errors.first_few(differing)}. Copy both anew."
    )
  return config, names, held


def _about(config: Any, mean_image: np.ndarray) -> str:
  means = ", ".join(f"{x:.4g}" for x in mean_image.mean((0, 1), np.float64))
  scales = ", ".join(f"{x:.4g}" for x in config.input_scale)
  return (
    f"It sees {config.crop_size_px} of {config.image_size_px} pixels, 0..255 in"
    f" RGB, less the mean ({means} on average), times {scales}; both are kept"
    " beside it."
  )


def bring_in(
  path: Path,
  output: Path,
  *,
  net: str = "",
  mean: str = "",
  classes: str = "",
  data_dir: str = "",
) -> list[str]:
  """Writes a file of weights as a run.

  Args:
    path: of the file.
    output: folder to make.
    net: name in `nets.NETS`, where the file does not tell.
    mean: R,G,B of 0..255, or Caffe's file; by default that of the net.
    classes: file of a name a line.
    data_dir: prepared data set of its classes, which `evaluate` reads.

  Returns:
    Lines that say what it is.

  Raises:
    InputError: see `files.read` and `nets.detect`; bad names or mean.
  """
  found = files.read(path)
  weights = found.arrays
  if found.is_ours:
    if net or mean or classes:
      raise errors.InputError(
        f"{str(path)!r} was written here: net, mean and classes are beside it;"
        " drop --net, --mean and --classes."
      )
    config, names, held = _own(path, found)
    lines = [f"{path} was written here, and has its config beside it."]
  else:
    try:
      (name, *others), config = nets.detect(found, net)
    except errors.InputError as e:
      raise errors.InputError(f"{str(path)!r}: {e}") from e
    known = nets.NETS[name]
    names = _class_names(classes, data_dir, config.num_classes)
    mean = mean or ",".join(map(str, known.mean))
    image = _mean_image(mean, config.image_size_px)
    held = statistics.Statistics(image, *nets.COLOURS)
    lines = [f"{path} is {name} (configs/{known.config}.py)."]
    lines += [
      f"It may be {other} as well: the file has weights alone, and they are"
      f" alike; pass --net={other} if it is."
      for other in others
    ]
    if known.bgr:
      weights = nets.to_rgb(weights)
      lines.append("conv1 took blue first; its filters are turned to take RGB.")
    lines.append(_about(config, image))
    config.unlock()
  if data_dir:
    _check_data(data_dir, names)
    config.data_dir = data_dir
  try:
    weights = files.checked(weights)
  except errors.InputError as e:
    raise errors.InputError(f"{str(path)!r}: {e}") from e
  params = arrays.from_torch(networks.from_config(config), weights)
  numbers = sum(values.size for values in weights.values())
  del found, weights  # Else hundreds of megabytes are held while it is written.
  with _making(output) as folder:
    _write_about(folder, config, names, held)
    checkpoint.write_params(folder, params)
  lines.append(f"wrote {output}: {numbers:,} parameters, {len(names)} classes")
  return lines


def send_out(
  workdir: Path, output: Path, kind: str, step: str = "newest"
) -> list[str]:
  """Writes a run's net as a file of another system.

  Args:
    workdir: of the run.
    output: folder to make.
    kind: of `exports.KINDS`.
    step: checkpoint, see `loaded.load`.

  Returns:
    Lines that say what it is.

  Raises:
    InputError: see `loaded.load` and `exports.write`.
  """
  if kind not in exports.KINDS:
    raise errors.unknown("--to", kind, exports.KINDS)
  model = inference.load(workdir, step)
  names, held = run_files.read_run_metadata(workdir)
  with _making(output) as folder:
    _write_about(folder, model.config, names, held)
    file = exports.write(model, kind, folder).name
  return [
    exports.KINDS[kind].about.format(size=model.config.crop_size_px),
    f"wrote {output / file}, with config, class names and mean image beside it",
  ]


def main(_) -> None:
  """Runs the command."""
  options: Any = flags.FLAGS
  path, output = Path(options["from"].value), Path(options.output)
  is_run = path.is_dir() or bool(options.to and not path.exists())
  if is_run != bool(options.to):
    raise errors.InputError(
      f"--from={str(path)!r} is a folder; say what it becomes by --to="
      f"{'|'.join(exports.KINDS)}."
      if is_run
      else f"--from={str(path)!r} must be a run's workdir to be made a file of."
    )
  foreign = {"net", "mean", "classes", "data_dir"}
  useless = [x for x in (foreign if is_run else {"step"}) if options[x].present]
  if useless:
    raise errors.InputError(
      f"--{useless[0]} says nothing of {'a run' if is_run else 'a file'}; drop"
      " it."
    )
  if is_run:
    lines = send_out(path, output, options.to, options.step)
  else:
    lines = bring_in(
      path,
      output,
      net=options.net,
      mean=options.mean,
      classes=options.classes,
      data_dir=options.data_dir,
    )
  print("\n".join(lines))


def _define_flags() -> None:
  flags.DEFINE_string(
    "from", None, "File of weights, or workdir of a run.", required=True
  )
  flags.DEFINE_string("output", None, "Folder to make.", required=True)
  flags.DEFINE_string(
    "to", "", f"What a run becomes: {', '.join(exports.KINDS)}."
  )
  flags.DEFINE_string(
    "step", "newest", "Checkpoint: newest, best (by validation) or a step."
  )
  flags.DEFINE_string(
    "net", "", f"Where a file does not tell: {', '.join(nets.NETS)}."
  )
  flags.DEFINE_string(
    "mean",
    "",
    "R,G,B of 0..255, or Caffe's mean, .npy or .binaryproto; by default what"
    " the net was trained with.",
  )
  flags.DEFINE_string("classes", "", "File of class names, one a line.")
  flags.DEFINE_string(
    "data_dir", "", "Prepared data set of its classes, to be evaluated on."
  )


def command() -> None:
  """`alexnet convert`."""
  cli.run(main, _define_flags)
