"""The tars of ILSVRC-2012 and its development kit, as they are downloaded."""

import io
import posixpath
import tarfile
from pathlib import Path, PurePosixPath

from alexnet_jax.data.prepare import archives, splits
from alexnet_jax.runtime import errors

TRAIN_TAR = "ILSVRC2012_img_train.tar"
_VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def find(
  folder: Path, spec: splits.SplitSpec
) -> tuple[list[splits.LabelledItem], dict[str, str]]:
  """Returns the images of the tars, and the full name of each WNID.

  The training tar holds one tar per class. Validation images are numbered by
  the lines of a file in the development kit, which has the challenge's labels;
  ours are in order of the WNIDs. Without a kit there are no full names.
  """
  path, validation = folder / TRAIN_TAR, folder / _VALIDATION_TAR
  items = []
  classes: dict[str, str] = {}
  try:
    with tarfile.open(path, "r:") as archive:
      for name, item in archives.in_tar(archive, path):
        wnid, _, image = name.rpartition("/")
        items.append(splits.LabelledItem("train", wnid, image, item))
    if (folder / _DEVKIT).is_file():
      wnids, words, truth = _read_devkit(folder / _DEVKIT)
      classes = {w: f"{w} {words[w]}" for w in sorted(wnids.values())}
      if validation.is_file():
        with tarfile.open(validation, "r:") as archive:
          for name, item in archives.in_tar(archive, validation):
            number = int(PurePosixPath(name).stem.rpartition("_")[2])
            wnid = wnids[truth[number]]
            items.append(splits.LabelledItem("validation", wnid, name, item))
  except errors.InputError:
    raise
  except Exception as e:  # SciPy raises many kinds for a damaged file.
    raise errors.InputError(
      f"{str(folder)!r} holds a damaged ILSVRC-2012 file"
      f" ({errors.reason(e)}); download it again."
    ) from e
  if validation.is_file() and not classes:
    raise errors.InputError(
      f"{_VALIDATION_TAR} needs the labels in {_DEVKIT}; put it into"
      f" {str(folder)!r}, or remove {_VALIDATION_TAR}."
    )
  return splits.select(str(folder), items, spec), classes


def _read_devkit(
  file: Path,
) -> tuple[dict[int, str], dict[str, str], dict[int, int]]:
  """Returns WNID by challenge label, words by WNID, and validation labels."""
  import scipy.io  # Slow to import, and only needed here.

  members = {}
  with tarfile.open(file, "r:*") as archive:
    for member in archive:
      stream = archive.extractfile(member) if member.isreg() else None
      wanted = member.name.endswith(("meta.mat", "ground_truth.txt"))
      if stream and wanted and member.size <= archives.MAX_BYTES:
        members[posixpath.basename(member.name)] = stream.read()
    archives.read_to_end(vars(archive)["fileobj"])
  meta = scipy.io.loadmat(io.BytesIO(members["meta.mat"]), squeeze_me=True)
  leaves = [row for row in meta["synsets"] if row["num_children"] == 0]
  truth = members["ILSVRC2012_validation_ground_truth.txt"]
  return (
    {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves},
    {str(row["WNID"]): str(row["words"]) for row in leaves},
    {n: int(line) for n, line in enumerate(truth.split(), start=1)},
  )
