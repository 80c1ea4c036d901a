"""Files made to do harm: nothing in them runs, nothing outside is touched.

A canary lies outside of every root; no test may find its bytes or a change.
"""

import io
import json
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
from directories import write_shards
from PIL import Image

from alexnet_jax.data import batches, records, statistics
from alexnet_jax.data.prepare import prepare, shards, sources
from alexnet_jax.runs import logs, run_files
from alexnet_jax.runtime import errors, files

pytestmark = pytest.mark.slow  # It makes hostile archives.
SECRET = b"the canary's"
CODE = "import pathlib; pathlib.Path({!r}).write_text('ran')"


def png(value=0):
  file = io.BytesIO()
  Image.new("RGB", (16, 16), (value,) * 3).save(file, "PNG")
  return file.getvalue()


def one_line(error):
  text = str(error.value)
  assert text
  assert "\n" not in text
  return text


def snapshot(folder):
  """Everything in a folder: names, kinds and bytes."""
  return {
    str(path): path.read_bytes() if path.is_file() else path.lstat().st_mode
    for path in sorted(folder.rglob("*"))
  }


@pytest.fixture
def canary(tmp_path):
  """A file outside of the root, which holds an image and a label file."""
  file = tmp_path / "outside" / "canary.png"
  file.parent.mkdir()
  file.write_bytes(png(99))
  (file.parent / "label.labels.txt").write_bytes(SECRET + b"\nx\n")
  return file


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "root"
  for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(png(int(name[2]) * 100))
  return folder


def find(path, spool=None):
  return sources.find(str(path), "validation=0", spool or path.parent / "spool")


# Lists.


@pytest.mark.parametrize(
  "path", ["../outside/canary.png", "folder/canary.png", "/etc/passwd"]
)
def test_a_list_does_not_lead_outside_of_its_folder(root, canary, path):
  (root / "folder").symlink_to(canary.parent)
  (root / "list.txt").write_text(f"a/1.png a\n{path} b\n")
  with pytest.raises(errors.InputError) as error:
    find(root / "list.txt")
  assert f"line 2: {path!r} lies outside of" in one_line(error)


# Archives.


def tar_bytes(members, mode="w"):
  """Returns a tar of (name, bytes) or (name, type, link)."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, *what in members:
      info = tarfile.TarInfo(name)
      if len(what) == 1:
        info.size = len(what[0])
        archive.addfile(info, io.BytesIO(what[0]))
      else:
        info.type, info.linkname = what
        archive.addfile(info)
  return file.getvalue()


def zip_bytes(members):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members:
      archive.writestr(name, data)
  return file.getvalue()


GOOD = [(f"{c}/{n}.png", png(n)) for c in "ab" for n in range(4)]
PACKED = {
  "in.tar": tar_bytes,
  "in.tar.gz": lambda members: tar_bytes(members, "w:gz"),
  "outer.tar": lambda members: tar_bytes([("in.tar", tar_bytes(members))]),
  "in.zip": zip_bytes,
}
every_archive = pytest.mark.parametrize("kind", PACKED)


def prepared(source, output, **options):
  return prepare.prepare(
    str(source), output, size_px=16, workers=0, splits="validation=0", **options
  )


@every_archive
def test_names_above_an_archive_stay_inside(tmp_path, kind):
  name = "../a/evil.png"
  work = tmp_path / "work"
  work.mkdir()
  (work / kind).write_bytes(PACKED[kind]([*GOOD, (name, png())]))
  before = snapshot(tmp_path)
  counts, names, _ = prepared(work / kind, work / "out")
  assert (counts, names) == ({"train": len(GOOD) + 1}, ["a", "b"])
  shutil.rmtree(work / "out")
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
  "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_pipes_in_a_tar_give_no_bytes(tmp_path, canary, mode, kind):
  there = f"../../../..{canary}"
  members = [*GOOD, ("a/link.png", kind, there)]
  (tmp_path / "in.tar").write_bytes(tar_bytes(members, mode))
  before = snapshot(canary.parent)
  items = [i for i, _ in find(tmp_path / "in.tar").splits["train"]]
  (item,) = (i for i in items if i.name == "a/link.png")
  with pytest.raises(OSError, match="no regular file"):
    item.read()
  assert snapshot(canary.parent) == before


@pytest.mark.parametrize("kind", ["in.tar.gz", "in.zip"])
def test_a_member_too_large_for_an_image_is_not_unpacked(
  tmp_path, kind, monkeypatch
):
  """It is listed as unreadable; the others are read."""
  monkeypatch.setattr(files, "MAX_BYTES", 10_000)
  bomb = bytes(1_000_000)
  (tmp_path / kind).write_bytes(PACKED[kind]([*GOOD, ("a/bomb.png", bomb)]))
  spool = tmp_path / "spool"
  found = find(tmp_path / kind, spool)
  assert spool.stat().st_size < 10_000
  items = {i.name: i for i, _ in found.splits["train"]}
  with pytest.raises(OSError, match="the limit is 10,000"):
    items.pop("a/bomb.png").read()
  assert all(item.read() for item in items.values())


# TFDS directories.


def encode(item):
  pixels = np.full((16, 16, 3), item, np.uint8)
  return pixels, shards.encode_jpeg(pixels)


@pytest.fixture
def dataset(tmp_path):
  items = [(10 * n, n % 2) for n in range(20)]
  return write_shards(
    tmp_path / "set", {"train": items}, ["ant", "bee"], 16, encode
  )


def read_back(directory):
  """Opens a directory and decodes all of it."""
  opened = records.open_directory(directory)
  examples = records.open_split(opened, "train", "train_split")
  return batches.load(examples, np.arange(len(examples)), 16)


def edit(file, change):
  value = json.loads(file.read_text())
  file.write_text(json.dumps(change(value) or value))


def legacy(image="tensorflow_datasets.core.features.image_feature.Image", **y):
  label = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
  fields = {
    "image": {
      "type": image,
      "content": {
        "shape": [16, 16, 3], "dtype": "uint8", "encoding_format": "jpeg",
      },
    },
    "label": {"type": label, "content": y or {"num_classes": 2}},
  }  # fmt: skip
  return {
    "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "content": fields,
  }


def nested(feature):
  """A feature in a sequence beside the others."""

  def change(value):
    value["featuresDict"]["features"]["more"] = {
      "pythonClassName": (
        "tensorflow_datasets.core.features.sequence_feature.Sequence"
      ),
      "sequence": {"feature": feature, "length": "-1"},
    }

  return change


def in_proto(name):
  def change(value):
    value["featuresDict"]["features"]["image"]["pythonClassName"] = name

  return change


FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
EVIL = {"pythonClassName": "evil_module.Feature", "jsonFeature": {"json": "{}"}}
IMPORTS = {
  "proto": in_proto("evil_module.Feature"),
  "nested": nested(EVIL),
  "legacy in text": lambda v: {
    "type": FEATURES_DICT,
    "proto_cls": "tensorflow_datasets.FeaturesDict",
    "content": json.dumps({"features": {"image": EVIL}}),
  },
}


@pytest.mark.parametrize("how", IMPORTS)
def test_no_module_is_imported_by_a_name_in_the_data(
  dataset, tmp_path, monkeypatch, how
):
  """TFDS would import the module of any class that it does not know."""
  ran = tmp_path / "ran"
  (tmp_path / "path").mkdir()
  module = tmp_path / "path" / "evil_module.py"
  module.write_text(CODE.format(str(ran)))
  monkeypatch.syspath_prepend(tmp_path / "path")
  edit(dataset / "features.json", IMPORTS[how])
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert "'evil_module.F" in one_line(error)
  assert not ran.exists()
  assert "evil_module" not in sys.modules


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_no_order_is_drawn_of_examples_that_are_not_there(dataset, kind):
  """An order of so many numbers would take all memory."""

  def change(value):
    value["fileFormat"] = kind
    value["splits"][0]["shardLengths"] = [str(10**15)]

  edit(dataset / "dataset_info.json", change)
  for shard in dataset.glob("*array_record*"):
    shard.rename(str(shard).replace("array_record", kind))
  opened = records.open_directory(dataset)
  with pytest.raises(errors.InputError) as error:
    records.open_split(opened, "train", "train_split")
  assert "fewer bytes" in one_line(error)


# What is loaded.


class Bomb:
  """Runs code where it is unpickled."""

  def __init__(self, file):
    self.file = str(file)

  def __reduce__(self):
    return exec, (CODE.format(self.file),)


def pickled_npy(bomb):
  file = io.BytesIO()
  np.save(file, np.array([bomb], object), allow_pickle=True)
  return file.getvalue()


@pytest.mark.parametrize("how", ["pickle", "npz"])
def test_a_mean_image_is_not_unpickled(dataset, tmp_path, how):
  ran = tmp_path / "ran"
  data = pickle.dumps(Bomb(ran)) if how == "pickle" else pickled_npy(Bomb(ran))
  if how == "npz":
    data = zip_bytes([("mean_image.npy", data)])
  (dataset / "mean_image.npy").write_bytes(data)
  with pytest.raises(errors.InputError) as error:
    statistics.read(dataset, 16)
  one_line(error)
  assert not ran.exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_what_a_run_left_is_json_alone(tmp_path, name):
  ran = tmp_path / "ran"
  code = f"exec({CODE.format(str(ran))!r})"
  (tmp_path / name).write_text(f"{code}\n{code}\n")
  read = run_files.read_config if name == "config.json" else logs.read_metrics
  with pytest.raises(errors.InputError) as error:
    read(tmp_path)
  one_line(error)
  assert not ran.exists()


@pytest.mark.parametrize(
  "name", ["features.json", "dataset_info.json", "label.labels.txt"]
)
def test_metadata_of_any_size_are_not_read(dataset, name):
  os.truncate(dataset / name, 2**40)
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert f"{name} is larger than" in one_line(error)


@pytest.mark.parametrize("name", statistics.FILES)
def test_statistics_of_any_size_are_not_read(dataset, name):
  os.truncate(dataset / name, 2**40)
  with pytest.raises(errors.InputError) as error:
    statistics.read(dataset, 16)
  assert "it has 1,099,511,627,776 bytes" in one_line(error)


def test_a_record_of_any_size_is_not_read(tmp_path):
  length = struct.pack("<Q4x", 2**40)
  file = tmp_path / "set-train.tfrecord-00000-of-00001"
  file.write_bytes(length)
  os.truncate(file, 2**41)
  part = types.SimpleNamespace(filename=file, skip=0, take=1)
  with pytest.raises(ValueError, match="an example of 1,099,511,627,776 bytes"):
    records._starts(part)


@pytest.mark.parametrize(
  "kind", ["source", "list", "synsets", "image of a list", "image", "socket"]
)
def test_a_pipe_given_to_prepare_is_not_opened(root, tmp_path, kind):
  name = {"source": "in.tar", "list": "list.txt", "synsets": "names.txt"}
  pipe = tmp_path / name.get(kind, "root/a/2.png")
  if kind == "socket":
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(str(pipe))
  else:
    os.mkfifo(pipe)
  source, options = root, {}
  if kind in ("source", "list"):
    source = pipe
  elif kind == "synsets":
    options = {"synsets": str(pipe)}
  elif kind == "image of a list":
    source = root / "list.txt"
    source.write_text("a/0.png a\nb/0.png b\na/2.png a\n")
  with pytest.raises(errors.InputError) as error:
    prepared(source, tmp_path / "out", **options)
  assert str(pipe) in str(error.value)
  if "image" not in kind and kind != "socket":
    one_line(error)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_in_a_folder_of_a_directory_is_not_opened(dataset, kind):
  """The metadata may name shards below."""

  def change(value):
    template = "below/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    value["splits"][0]["filepathTemplate"] = template

  edit(dataset / "dataset_info.json", change)
  (dataset / "below").mkdir()
  for shard in list(dataset.glob("*array_record*")):
    shard.rename(dataset / "below" / shard.name)
  assert len(read_back(dataset)["label"]) == 20
  (shard,) = (dataset / "below").iterdir()
  shard.unlink()
  os.mkfifo(shard) if kind == "pipe" else shard.symlink_to("/dev/zero")
  with pytest.raises(errors.InputError) as error:
    read_back(dataset)
  assert str(shard) in one_line(error)


@pytest.mark.parametrize("name", ["features.json", "shard", "colour_pca.json"])
def test_a_pipe_in_a_directory_is_not_opened(dataset, name):
  """A read of it would wait for ever."""
  if name == "shard":
    name = next(p.name for p in dataset.iterdir() if "array_record" in p.name)
  (dataset / name).unlink()
  os.mkfifo(dataset / name)
  with pytest.raises(errors.InputError) as error:
    read_back(dataset)
  assert f"{str(dataset / name)!r} is no regular file" in one_line(error)
