"""A linear classifier on features: how well a line separates the classes.

  alexnet probe TRAIN.npz TEST.npz

Logistic regression by scikit-learn on the standardized features; its penalty is
the best on a tenth of the training images. `alexnet features` writes the files.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.runtime import cli, errors

# On half the squared weights, beside the mean loss over the images.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class Features(NamedTuple):
  """A file of `alexnet features`: values float32 [N, D], labels int [N]."""

  values: np.ndarray
  labels: np.ndarray
  class_names: list[str]
  layer: str


def read(file: Path) -> Features:
  """Reads a file of features, and flattens maps; InputError if it has none."""
  try:
    if not file.is_file():
      raise ValueError("it is no regular file")
    with zipfile.ZipFile(file) as archive:
      if any(x.compress_type for x in archive.infolist()):
        raise ValueError("it is compressed")
    with np.load(file) as held:
      names = ("features", "labels", "class_names", "layer")
      values, labels, class_names, layer = (held[name] for name in names)
    values = values.reshape(len(labels), -1)
    if not np.isfinite(values).all():
      raise ValueError("a feature is not finite")
  except Exception as e:  # np.load raises many kinds for a damaged file.
    raise errors.InputError(
      f"{str(file)!r} holds no features ({' '.join(str(e).split())}); make it"
      " with alexnet features."
    ) from e
  return Features(values, labels, class_names.tolist(), str(layer))


def error(train: Features, test: Features) -> float:
  """Returns the share of test images that the classifier gets wrong."""
  try:
    from sklearn import linear_model, model_selection, preprocessing
  except ImportError as e:
    raise errors.InputError(
      "the probe needs scikit-learn; pip install 'alexnet-jax[probe]'."
    ) from e
  if train[2:] != test[2:] or train.values.shape[1] != test.values.shape[1]:
    raise errors.InputError(
      f"the files differ in layer or classes ({train.layer} and {test.layer});"
      " make both with one run and layer."
    )
  scaler = preprocessing.StandardScaler().fit(train.values)
  weights: Any = [1 / (penalty * len(train.values)) for penalty in PENALTIES]
  model = linear_model.LogisticRegressionCV(
    Cs=weights,
    cv=model_selection.ShuffleSplit(1, test_size=0.1, random_state=0),
    max_iter=200,
  )
  # The smallest penalties may not converge in 200 steps; that is enough.
  model.fit(scaler.transform(train.values), train.labels)
  return 1 - float(model.score(scaler.transform(test.values), test.labels))


def main(argv: Sequence[str]) -> None:
  if len(argv) != 3:
    raise errors.InputError("write alexnet probe TRAIN.npz TEST.npz.")
  train, test = (read(Path(name)) for name in argv[1:])
  cli.echo(
    f"{train.layer}, {train.values.shape[1]:,} features, {len(train.labels):,}"
    f" to learn from, {len(test.labels):,} to test: top-1 error"
    f" {error(train, test):.2%}"
  )


def define_flags() -> None:
  """The command has none."""
