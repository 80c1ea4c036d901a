"""A linear classifier on features, and the files that it refuses."""

import os
import sys

import numpy as np
import pytest
from commands import assert_refused, run_in_process

from alexnet_jax.runtime import errors
from alexnet_jax.tools import probe


def planted(count, seed):
  """Three classes, told apart by a line in two of eight numbers."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(count, 8))
  scores = np.stack([values[:, 0], values[:, 1], -values[:, 0]], axis=1)
  noisy = scores + 0.7 * rng.gumbel(size=scores.shape)
  return values.astype(np.float32), noisy.argmax(axis=1)


def features_of(values, labels):
  names = ["a", "b", "c"]
  return probe.Features(7 + 100 * values, labels, names, "fc7")


@pytest.mark.filterwarnings("ignore")  # As of all commands.
def test_probe_finds_the_line_that_separates_the_classes():
  """It reaches the error of the planted rule, and finds no line in noise."""
  (values, labels), (others, truth) = planted(3000, 1), planted(2000, 2)
  scores = np.stack([others[:, 0], others[:, 1], -others[:, 0]], axis=1)
  rule = (scores.argmax(axis=1) != truth).mean()
  train, test = features_of(values, labels), features_of(others, truth)
  assert probe.error(train, test) == pytest.approx(rule, abs=0.02)
  luck = np.random.default_rng(3).permutation(labels)
  assert probe.error(train._replace(labels=luck), test) > rule + 0.2


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"layer": "fc6"}, "differ in layer"),
    ({"class_names": np.array(["a", "b", "d"])}, "differ in layer or classes"),
    ({"features": np.zeros((4, 9))}, "differ in layer"),
    ({"labels": np.array([0, 1, 2])}, "holds no features"),
    ({"features": np.full((4, 8), np.nan)}, "not finite"),
  ],
)
def test_files_that_do_not_fit_are_refused(change, words, tmp_path):
  values, labels = planted(20, 0)
  about = {"class_names": np.array(["a", "b", "c"]), "layer": "fc7"}
  other = {"features": values[:4], "labels": labels[:4], **about, **change}
  np.savez(tmp_path / "b.npz", **other)
  with pytest.raises(errors.InputError, match=words):
    probe.error(features_of(values, labels), probe.read(tmp_path / "b.npz"))


def test_files_that_would_never_end_are_refused(tmp_path):
  """A pipe is waited for; a small compressed file can hold gigabytes."""
  os.mkfifo(tmp_path / "pipe.npz")
  np.savez_compressed(tmp_path / "zip.npz", features=np.zeros(10**6))
  for name, words in (("pipe", "no regular file"), ("zip", "is compressed")):
    with pytest.raises(errors.InputError, match=words):
      probe.read(tmp_path / f"{name}.npz")


def test_missing_scikit_learn_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  train = features_of(*planted(20, 0))
  with pytest.raises(errors.InputError, match=r"alexnet-jax\[probe\]"):
    probe.error(train, train)


def test_command_prints_the_error_and_refuses_half_a_file(tmp_path, capsys):
  values, labels = planted(200, 0)
  file, half = tmp_path / "a.npz", tmp_path / "half.npz"
  names = np.array(["a", "b", "c"])
  np.savez(file, features=values, labels=labels, class_names=names, layer="fc7")
  half.write_bytes(b"PK\3\4half")
  result = run_in_process(capsys, "probe", file, file)
  assert result.returncode == 0, result.stderr
  assert "fc7, 8 features, 200 to learn from" in result.stdout
  refused = run_in_process(capsys, "probe", file, half)
  assert_refused(refused, "half.npz", "holds no features", "alexnet features")
