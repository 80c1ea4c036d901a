"""Files made to do harm: nothing in them runs, nothing outside is touched.

A canary lies outside of every root; no test may find its bytes or a change.
"""

import io
import json
import os
import pickle
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from directories import write_shards
from PIL import Image

from alexnet_jax.data import batches, decode, records, statistics
from alexnet_jax.data.prepare import archives, shards, sources
from alexnet_jax.data.prepare import command as prepare
from alexnet_jax.runs import logs, run_files
from alexnet_jax.runtime import errors

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


def in_list(root, *lines, name="list.txt"):
  (root / name).write_text("\n".join(["a/0.png a", "b/0.png b", *lines]))
  return root / name


@pytest.mark.parametrize(
  "path",
  [
    "../outside/canary.png",
    "{root}/../outside/canary.png",
    "folder/canary.png",
    "chain.png",
    "/etc/passwd",
    "../root_too/0.png",
  ],
)
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_list_does_not_lead_outside_of_its_folder(root, canary, path, name):
  (root / "link.png").symlink_to(canary)
  (root / "chain.png").symlink_to("link.png")
  (root / "folder").symlink_to(canary.parent)
  (root.parent / "root_too").mkdir()
  (root.parent / "root_too" / "0.png").write_bytes(png())
  path = path.format(outside=canary.parent, root=root)
  parted = {"list.txt": " ", "list.csv": ","}[name]
  lines = [f"{p}{parted}{y}" for p, y in [("a/1.png", "a"), (path, "b")]]
  (root / name).write_text("\n".join(lines))
  with pytest.raises(errors.InputError) as error:
    find(root / name)
  text = one_line(error)
  assert f"line 2: {path!r} lies outside of" in text


def test_a_list_may_name_what_is_inside_in_any_way(root, tmp_path):
  """Absolute, by a link that stays inside, from a root that is a link."""
  (root / "link.png").symlink_to("a/1.png")
  (tmp_path / "door").symlink_to(root)
  source = in_list(
    root, f"{root}/b/1.png b", "link.png a", "a/../a/1.png a", "./b/1.png b"
  )
  for folder in (root, tmp_path / "door"):
    found = find(folder / source.name)
    assert len(found.splits["train"]) == 6
    assert all(item.read() for item, _ in found.splits["train"])


def test_links_in_a_users_own_folder_are_followed(root, canary):
  """Subsets of ImageNet are often made of them."""
  (root / "a" / "link.png").symlink_to(canary)
  items = [item for item, _ in find(root).splits["train"]]
  assert canary.read_bytes() in [item.read() for item in items]


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
def test_names_above_an_archive_are_refused(tmp_path, kind):
  name = "a/../../evil.png"
  work = tmp_path / "work"
  work.mkdir()
  (work / kind).write_bytes(PACKED[kind]([*GOOD, (name, png())]))
  before = snapshot(tmp_path)
  with pytest.raises(errors.InputError) as error:
    prepared(work / kind, work / "out")
  one_line(error)
  assert snapshot(tmp_path) == before


@every_archive
def test_absolute_names_are_only_names(tmp_path, kind):
  """`/x/a/0.png` is class a of an archive; nothing is written to /x."""
  far = tmp_path / "far"
  members = [(f"{far}/{name}", data) for name, data in GOOD]
  work = tmp_path / "work"
  work.mkdir()
  (work / kind).write_bytes(PACKED[kind](members))
  counts, class_names, _ = prepared(work / kind, work / "out")
  assert (counts["train"], class_names) == (8, ["a", "b"])
  assert not far.exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]
  assert sorted(p.name for p in work.iterdir()) == sorted([kind, "out"])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_out_of_a_tar_give_no_bytes(tmp_path, canary, mode, kind):
  """Nor does a member that is put through a link to a folder."""
  there = f"../../../..{canary.parent}"
  (tmp_path / "in.tar").write_bytes(
    tar_bytes(
      [
        *GOOD,
        ("a/link.png", kind, f"{there}/canary.png"),
        ("b/door", kind, there),
        ("b/door/written.png", png(7)),
      ],
      mode,
    )
  )
  before = snapshot(canary.parent)
  try:
    items = [i for i, _ in find(tmp_path / "in.tar").splits["train"]]
  except errors.InputError:  # b/door/written.png is in no class.
    items = []
  for item in items:
    if item.name == "a/link.png":
      with pytest.raises(OSError, match="no regular file"):
        item.read()
  assert snapshot(canary.parent) == before


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_devices_and_pipes_in_a_tar_are_not_made(tmp_path, kind):
  (tmp_path / "in.tar").write_bytes(tar_bytes([*GOOD, ("a/odd.png", kind, "")]))
  items = [i for i, _ in find(tmp_path / "in.tar").splits["train"]]
  (odd,) = (i for i in items if i.name == "a/odd.png")
  with pytest.raises(OSError, match="no regular file"):
    odd.read()
  assert not any(stat.S_ISFIFO(p.lstat().st_mode) for p in tmp_path.rglob("*"))


def test_a_link_in_a_zip_is_its_text(tmp_path, canary):
  link = zipfile.ZipInfo("a/link.png")
  link.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
    for name, data in GOOD:
      archive.writestr(name, data)
    archive.writestr(link, str(canary))
  items = [i for i, _ in find(tmp_path / "in.zip").splits["train"]]
  (item,) = (i for i in items if i.name == "a/link.png")
  assert item.read() == str(canary).encode()
  with pytest.raises(decode.UnreadableError):
    decode.decode(item.read())


@pytest.mark.parametrize("kind", ["in.tar.gz", "in.zip"])
def test_a_member_too_large_for_an_image_is_not_unpacked(
  tmp_path, kind, monkeypatch
):
  """It is listed as unreadable; the others are read."""
  monkeypatch.setattr(archives, "MAX_BYTES", 10_000)
  bomb = bytes(1_000_000)
  (tmp_path / kind).write_bytes(PACKED[kind]([*GOOD, ("a/bomb.png", bomb)]))
  spool = tmp_path / "spool"
  found = find(tmp_path / kind, spool)
  assert spool.stat().st_size < 10_000
  items = {i.name: i for i, _ in found.splits["train"]}
  with pytest.raises(OSError, match="the limit is 10,000"):
    items.pop("a/bomb.png").read()
  assert all(item.read() for item in items.values())


def test_large_files_are_not_read_as_images(tmp_path, root, monkeypatch):
  """A file of nothing can claim a terabyte."""
  monkeypatch.setattr(archives, "MAX_BYTES", 10_000)
  with (root / "a" / "huge.png").open("wb") as file:
    file.truncate(2**40)
  items = {Path(i.name).name: i for i, _ in find(root).splits["train"]}
  with pytest.raises(OSError, match="the limit is 10,000"):
    items["huge.png"].read()


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
  "legacy": lambda v: legacy("evil_module.Feature"),
  "legacy in text": lambda v: {
    "type": FEATURES_DICT,
    "proto_cls": "tensorflow_datasets.FeaturesDict",
    "content": json.dumps({"features": {"image": EVIL}}),
  },
  "text in text": nested(
    {
      "pythonClassName": FEATURES_DICT,
      "jsonFeature": {
        "json": json.dumps(
          {
            "x": {
              "type": FEATURES_DICT,
              "proto_cls": "tensorflow_datasets.FeaturesDict",
              "content": " " + json.dumps({"features": {"image": EVIL}}),
            }
          }
        )
      },
    }
  ),
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


@pytest.mark.parametrize("how", ["legacy", "labeled image"])
def test_names_of_classes_come_from_no_other_file(dataset, canary, how):
  names = str(canary.parent / "label.labels.txt")
  (dataset / "label.labels.txt").unlink()

  def change(value):
    if how == "legacy":
      return legacy(names_file=names)
    labeled = "tensorflow_datasets.core.features.labeled_image.LabeledImage"
    more = {"labels": names, "encoding_format": "png"}
    nested(
      {"pythonClassName": labeled, "jsonFeature": {"json": json.dumps(more)}}
    )(value)
    return value

  edit(dataset / "features.json", change)
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert "label.labels.txt" in one_line(error)


def test_a_features_name_is_no_path(dataset, canary):
  """TFDS reads NAME.labels.txt."""
  name = str(canary.parent / "label")

  def change(value):
    held = value["featuresDict"]["features"]
    held[name] = held.pop("label")

  edit(dataset / "features.json", change)
  (dataset / "label.labels.txt").unlink()
  opened = records.open_directory(dataset)
  assert opened.class_names == ("0", "1")


def test_older_directories_of_tfds_still_open(dataset):
  """Their features.json is of another form."""
  edit(dataset / "features.json", lambda value: legacy())
  assert len(read_back(dataset)["label"]) == 20


@pytest.mark.parametrize(
  "name",
  [
    "features.json",
    "label.labels.txt",
    "mean_image.npy",
    "shard",
  ],
)
def test_no_file_of_a_directory_is_a_link_out_of_it(dataset, tmp_path, name):
  if name == "shard":
    name = next(p.name for p in dataset.iterdir() if "array_record" in p.name)
  far = tmp_path / "far"
  (dataset / name).rename(far)
  (dataset / name).symlink_to(far)
  with pytest.raises(errors.InputError) as error:
    read_back(dataset)
  text = one_line(error)
  assert f"{str(dataset / name)!r} leads outside" in text
  assert str(far) in text


def test_links_inside_and_to_a_whole_directory_are_followed(dataset, tmp_path):
  shard = next(p for p in dataset.iterdir() if "array_record" in p.name)
  (dataset / "stored").mkdir()
  shard.rename(dataset / "stored" / "it")
  shard.symlink_to("stored/it")
  (tmp_path / "door").symlink_to(dataset)
  assert len(read_back(tmp_path / "door")["label"]) == 20


def test_a_pipe_in_a_directory_is_not_waited_for(dataset):
  (dataset / "label.labels.txt").unlink()
  os.mkfifo(dataset / "label.labels.txt")
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert "is no regular file" in one_line(error)


SUFFIX = "{FILEFORMAT}-{SHARD_X_OF_Y}"


def in_split(**fields):
  return lambda value: value["splits"][0].update(fields)


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize(
  "change",
  [
    in_split(filepathTemplate="{outside}/x." + SUFFIX),
    in_split(filepathTemplate="inner/../../outside/x." + SUFFIX),
    in_split(filepathTemplate="door/x." + SUFFIX),
    in_split(name="../outside/x", filepathTemplate="{SPLIT}." + SUFFIX),
    lambda v: v.update(name="../outside/x"),
  ],
)
def test_no_shard_lies_outside_of_its_directory(dataset, canary, kind, change):
  shard = next(p for p in dataset.iterdir() if "array_record" in p.name)
  (dataset / "door").symlink_to(canary.parent)
  far = canary.parent / f"x.{kind}-00000-of-00001"
  far.write_bytes(shard.read_bytes())
  (dataset / "door").unlink()
  (dataset / "inner").mkdir()
  (dataset / "inner" / "door").symlink_to(canary.parent)

  def both(value):
    value["fileFormat"] = kind
    change(value)
    template = value["splits"][0].get("filepathTemplate", "")
    template = template.replace("{outside}", str(canary.parent))
    template = template.replace("door/", "inner/door/")
    value["splits"][0]["filepathTemplate"] = template

  edit(dataset / "dataset_info.json", both)
  with pytest.raises(errors.InputError) as error:
    read_back(dataset)
  one_line(error)


@pytest.mark.parametrize(
  "template",
  [
    "{DATASET:>99999999999}." + SUFFIX,
    "{SPLIT.__class__.__mro__}." + SUFFIX,
    "{SPLIT:{DATASET}}." + SUFFIX,
  ],
)
def test_a_template_of_file_names_holds_names_alone(dataset, template):
  """It is a format string: it could ask for a terabyte of blanks."""
  edit(dataset / "dataset_info.json", in_split(filepathTemplate=template))
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert repr(template) in one_line(error)


def test_a_directory_called_home_is_not_home(dataset, tmp_path, monkeypatch):
  """TFDS expands ~, which the shell has done already."""
  monkeypatch.chdir(tmp_path)
  dataset.rename("~")
  monkeypatch.setenv("HOME", str(tmp_path / "outside"))
  assert len(read_back(Path("~"))["label"]) == 20


def test_a_directory_becomes_no_class_by_the_million(dataset):
  """To name each of them would take all memory."""

  def change(value):
    label = value["featuresDict"]["features"]["label"]
    label["classLabel"]["numClasses"] = str(10**15)

  (dataset / "label.labels.txt").unlink()
  edit(dataset / "features.json", change)
  with pytest.raises(errors.InputError) as error:
    records.open_directory(dataset)
  assert "classes" in one_line(error)


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
    statistics.read(dataset)
  one_line(error)
  assert not ran.exists()


def test_what_a_killed_prepare_left_is_not_unpickled(root, tmp_path):
  """Another user may have put it there."""
  ran = tmp_path / "ran"
  prepared(root, tmp_path / "out")
  work = tmp_path / ".out.unfinished"
  for folder in ("out", "done"):
    (work / folder).mkdir(parents=True)
  for shard in (tmp_path / "out").glob("*array_record*"):
    shard.rename(work / "out" / shard.name)
    bomb = pickled_npy(Bomb(ran))
    fields = [("about.npy", bomb), ("image.npy", bomb)]
    (work / "done" / shard.name).write_bytes(zip_bytes(fields))
  (tmp_path / "out").rename(tmp_path / "first")
  prepared(root, tmp_path / "out")
  assert not ran.exists()
  assert len(read_back(tmp_path / "out")["label"]) == 4


def test_the_development_kit_of_imagenet_is_data(tmp_path):
  """MATLAB's objects and functions stay what they are: bytes."""
  ran = tmp_path / "ran"
  file = io.BytesIO()
  scipy.io.savemat(file, {"synsets": np.array([CODE.format(str(ran))])})
  devkit = tar_bytes(
    [
      ("data/meta.mat", file.getvalue()),
      ("data/ILSVRC2012_validation_ground_truth.txt", b"1\n"),
    ],
    "w:gz",
  )
  inner = tar_bytes([("n01_0.JPEG", png())])
  outer = tar_bytes([("n01.tar", inner), ("n02.tar", inner)])
  (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(outer)
  (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit)
  with pytest.raises(errors.InputError) as error:
    find(tmp_path)
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


def test_class_names_of_a_run_are_text(dataset, tmp_path):
  for held in ('{"a": 1}', '"abc"', "[1, 2]", '["a", ["b"]]'):
    (dataset / "class_names.json").write_text(held)
    with pytest.raises(errors.InputError) as error:
      run_files.read_run_metadata(dataset)
    assert "class_names.json" in one_line(error)
