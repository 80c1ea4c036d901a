"""The tars of ILSVRC-2012 in miniature: the labels of the development kit."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from source_files import find, refuse, sizes, tar_of

# Challenge's label, WNID, words, WNIDs' children: a leaf has none.
META = [
  (1, "n03", "kit fox, Vulpes macrotis", []),
  (2, "n01", "English setter", []),
  (3, "n02", "Siberian husky", []),
  (4, "n00", "entity", [5, 1]),
  (5, "n04", "dog, domestic dog", [2, 3]),
]
TRUTH = [1, 2, 3, 3, 2, 1, 3]
FIELDS = (
  "ILSVRC2012_ID WNID words gloss num_children children wordnet_height"
  " num_train_images"
).split()
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def meta_mat():
  """The development kit's meta.mat: a 5 x 1 struct array."""
  synsets_5x1 = np.empty((len(META), 1), [(name, object) for name in FIELDS])
  for row, (label, wnid, words, children) in enumerate(META):
    synsets_5x1[row, 0] = (
      np.float64(label),
      wnid,
      words,
      f"a gloss; of {words}",
      np.float64(len(children)),
      np.array(children, np.float64),
      np.float64(bool(children)),
      np.float64(0 if children else 3),
    )
  file = io.BytesIO()
  scipy.io.savemat(file, {"synsets": synsets_5x1}, do_compression=True)
  return file.getvalue()


def ilsvrc(folder, meta=None, truth=TRUTH, without=()):
  """Miniatures of the three tars, in the layout of the real ones."""
  folder.mkdir()
  inner = []
  for wnid in ["n02", "n01", "n03"]:
    members = [
      (f"{wnid}_{index}.JPEG", f"{wnid}/{index}".encode() * index)
      for index in range(3)
    ]
    inner.append((f"{wnid}.tar", tar_of(folder / "x", *members).read_bytes()))
  (folder / "x").unlink()
  tar_of(folder / TRAIN_TAR, *inner)
  numbers = random.Random(0).sample(range(1, len(TRUTH) + 1), len(TRUTH))
  members = [(f"ILSVRC2012_val_{n:08}.JPEG", b"%d" % n) for n in numbers]
  tar_of(folder / VALIDATION_TAR, *members)
  data = "ILSVRC2012_devkit_t12/data"
  labels = "".join(f"{label}\n" for label in truth).encode()
  tar_of(
    folder / DEVKIT,
    (data, None),
    (f"{data}/meta.mat", meta_mat() if meta is None else meta),
    (f"{data}/ILSVRC2012_validation_ground_truth.txt", labels),
    mode="w:gz",
  )
  for name in without:
    (folder / name).unlink()
  return folder


def test_the_tars_are_read_as_they_are_downloaded(tmp_path):
  """The challenge's labels are in another order than the WNIDs."""
  found = find(ilsvrc(tmp_path / "in"))
  assert found.class_names == [
    "n01 English setter",
    "n02 Siberian husky",
    "n03 kit fox, Vulpes macrotis",
  ]
  assert [(y, i.name, i.read()) for i, y in found.splits["train"]] == [
    (label, f"{w}/{w}_{index}.JPEG", f"{w}/{index}".encode() * index)
    for label, w in enumerate(["n01", "n02", "n03"])
    for index in range(3)
  ]
  labels = {1: 2, 2: 0, 3: 1}  # Challenge's: ours.
  validation = {int(i.read()): y for i, y in found.splits["validation"]}
  assert validation == {n: labels[t] for n, t in enumerate(TRUTH, start=1)}
  assert {Path(i.path).parent for i, _ in found.splits["train"]} == {
    tmp_path / "in"
  }


def test_the_validation_tar_needs_the_kit(tmp_path):
  source = ilsvrc(tmp_path / "in", without=[DEVKIT])
  refuse(source, VALIDATION_TAR, DEVKIT, "remove")
  (source / VALIDATION_TAR).unlink()
  found = find(source, "train")
  assert sizes(found) == {"train": 9}
  assert found.class_names == ["n01", "n02", "n03"]


def test_ilsvrc_may_be_split_and_labelled_otherwise(tmp_path):
  source = ilsvrc(tmp_path / "in")
  (tmp_path / "words.txt").write_text("n03 fox\nn02 husky\nn01 setter\n")
  found = find(source, "train,test=val", synsets=str(tmp_path / "words.txt"))
  assert found.class_names == ["n03 fox", "n02 husky", "n01 setter"]
  assert sizes(found) == {"train": 9, "test": 7}
  labels = {1: 0, 2: 2, 3: 1}
  for item, label in found.splits["test"]:
    assert label == labels[TRUTH[int(item.read()) - 1]]


@pytest.mark.parametrize("truth", [TRUTH[:-1], [1, 2, 3, 3, 2, 1, 4]])
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, truth):
  """A file that is too short, and an inner node."""
  refuse(ilsvrc(tmp_path / "in", truth=truth), "damaged", "download")


@pytest.mark.parametrize("name", [TRAIN_TAR, VALIDATION_TAR, DEVKIT])
def test_a_cut_off_download_is_refused(tmp_path, name):
  source = ilsvrc(tmp_path / "in")
  content = (source / name).read_bytes()
  # A tar of few members is padding for the most part.
  end = len(content) if name == DEVKIT else len(content.rstrip(b"\0"))
  (source / name).write_bytes(content[: int(end * 0.6)])
  refuse(source, "ILSVRC-2012", "download")
