"""The tars of ILSVRC-2012 and its development kit, as they are downloaded."""

import io
import posixpath
from pathlib import Path, PurePosixPath

from alexnet_jax.data.prepare import archives
from alexnet_jax.data.prepare.splits import Found, LabelledItem, Source
from alexnet_jax.runtime import errors

_TRAIN_TAR = "ILSVRC2012_img_train.tar"
_VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def fits(source: str) -> bool:
  """Returns whether a source is a folder of the tars."""
  return (Path(source) / _TRAIN_TAR).is_file()


def find(source: Source) -> Found:
  """Returns the images of the tars, and the full name of each WNID.

  Validation images are numbered by the lines of a file in the development kit,
  which has the challenge's labels; ours are in order of the WNIDs.
  """
  train, validation, devkit = (
    source.path / name for name in (_TRAIN_TAR, _VALIDATION_TAR, _DEVKIT)
  )
  items, classes = [], {}
  if validation.is_file() and not devkit.is_file():
    raise errors.InputError(
      f"{_VALIDATION_TAR} needs the labels in {_DEVKIT}; put it into"
      f" {source.name!r}, or remove {_VALIDATION_TAR}."
    )
  try:
    for name, item in archives.in_archive(train, source.spool):
      wnid, _, image = name.rpartition("/")
      items.append(LabelledItem("train", wnid, image, item))
    if devkit.is_file():
      wnids, words, truth = _read_devkit(devkit, source.spool)
      classes = {w: f"{w} {words[w]}" for w in sorted(wnids.values())}
    if validation.is_file():
      for name, item in archives.in_archive(validation, source.spool):
        number = int(PurePosixPath(name).stem.rpartition("_")[2])
        wnid = wnids[truth[number]]
        items.append(LabelledItem("validation", wnid, name, item))
  except Exception as e:  # SciPy raises many kinds for a damaged file.
    raise errors.InputError(
      f"{source.name!r} holds a damaged ILSVRC-2012 file ({errors.reason(e)});"
      " download it again."
    ) from e
  return Found(items, classes, [])


def _read_devkit(
  file: Path, spool: Path
) -> tuple[dict[int, str], dict[str, str], dict[int, int]]:
  """Returns WNID by challenge label, words by WNID, and validation labels."""
  import scipy.io  # Slow to import, and only needed here.

  found = archives.in_archive(file, spool)
  files = {posixpath.basename(name): item for name, item in found}
  meta = io.BytesIO(files["meta.mat"].read())
  synsets = scipy.io.loadmat(meta, squeeze_me=True)["synsets"]
  leaves = [row for row in synsets if row["num_children"] == 0]
  truth = files["ILSVRC2012_validation_ground_truth.txt"].read()
  return (
    {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves},
    {str(row["WNID"]): str(row["words"]) for row in leaves},
    {n: int(line) for n, line in enumerate(truth.split(), start=1)},
  )
