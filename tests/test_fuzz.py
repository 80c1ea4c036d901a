"""Whatever a user's files and flags hold: it works, or one line says why not.

Each target is a property of one kind of input. `FUZZ_EXAMPLES` is how many are
tried of each; experiments/faults/fuzz.py tries them for minutes.
"""

import atexit
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from PIL import Image

from alexnet_jax import augment, model, networks, optimizer, train
from alexnet_jax.data import batches, checks, records, statistics
from alexnet_jax.data.prepare import command as prepare
from alexnet_jax.data.prepare import shards, sources
from alexnet_jax.parallel import layouts
from alexnet_jax.runs import config_files, digests, logs, run_files
from alexnet_jax.runtime import cli, errors
from configs import quickstart

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
HANGS_AFTER_S = 20
TARGETS = {}
SETTINGS = {
  "deadline": None,
  "database": None,
  "suppress_health_check": list(hypothesis.HealthCheck),
}


def target(*strategies, examples=()):
  """Registers a property, and examples that once broke it."""

  def register(holds):
    TARGETS[holds.__name__] = (holds, st.tuples(*strategies), examples)
    return holds

  return register


def attempt(name, settings, on_example=lambda: None):
  """Tries a target on examples; raises what broke it, at its simplest."""
  holds, strategy, examples = TARGETS[name]

  @hypothesis.given(strategy)
  def test(drawn):
    on_example()
    with limited():
      holds(*drawn)

  for drawn in examples:
    test = hypothesis.example(drawn)(test)
  settings(test)()


@pytest.mark.parametrize("name", TARGETS.keys())
def test_it_works_or_one_line_says_why_not(name):
  settings = hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, **SETTINGS
  )
  attempt(name, settings)


@contextlib.contextmanager
def limited():
  """Fails what hangs."""

  def stop(*_):
    raise TimeoutError(f"it runs for more than {HANGS_AFTER_S} s")

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(HANGS_AFTER_S)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def one_line():
  """Lets bad input end in one line, and nothing else."""
  try:
    yield
  except errors.InputError as e:
    check_line(str(e))


def check_line(text):
  # Images that cannot be read are listed below, indented.
  first, *more = text.splitlines()
  assert first, text
  assert all(line.startswith("  ") for line in more), text


@contextlib.contextmanager
def playground():
  """Yields a new folder; nothing may change beside it, where the code runs."""
  with tempfile.TemporaryDirectory() as parent, contextlib.chdir(parent):
    (Path(parent) / "canary").write_text("alive")
    work = Path(parent) / "work"
    work.mkdir()
    yield work
    assert sorted(os.listdir(parent)) == ["canary", "work"]
    assert (Path(parent) / "canary").read_text() == "alive"


# Bytes and JSON that are almost right.

EDITS = st.lists(
  st.tuples(
    st.sampled_from(["set", "set", "insert", "cut", "repeat", "end"]),
    # Scattered, as small numbers are drawn most.
    st.integers(1, 2**32).map(lambda n: n * 2654435761 % 2**32 / 2**32),
    st.one_of(
      st.binary(min_size=1, max_size=12),
      st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\n", b"\r", b"../", b"\xc3"]),
    ),
  ),
  min_size=1,
  max_size=4,
)


def edited(data, edits):
  """Returns bytes after edits: what, where from 0 to 1, with which bytes."""
  for what, where, new in edits:
    at = int(where * len(data))
    if what == "set":
      data = data[:at] + new + data[at + len(new) :]
    elif what == "insert":
      data = data[:at] + new + data[at:]
    elif what == "cut":
      data = data[:at] + data[at + len(new) :]
    elif what == "repeat":
      data = data[: at + 64] + data[at:]
    else:
      data = data[:at]
  return data


NUMBERS = st.one_of(
  st.integers(-3, 300),
  st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 10**15]),
  st.floats(),
)
WORDS = st.one_of(
  st.sampled_from(
    [
      "", "..", "../canary", "/etc/passwd", "a\nb", "a\rb", "\0", "\ud800",
      "nan", "None", "train", "step", "-1", "9" * 30, "9" * 5000, "x" * 5000,
      "evil_module.Feature", "{SPLIT}", "{", "a.b", "__class__", "\u2028",
    ]
  ),
  st.text(max_size=8),
)  # fmt: skip
JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)
  ),
  max_leaves=6,
)
DEEP = b"[" * 200_000


def places(value, path=()):
  """Returns the path to every value in a value of JSON."""
  found = [path]
  if isinstance(value, dict | list):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
      found += places(value[key], (*path, key))
  return found


def like(value):
  """Returns a strategy of values, most of them of the type of one."""
  if isinstance(value, str):
    digits = st.integers(-3, 300).map(str)
    return st.one_of(WORDS, digits, NUMBERS.map(str), JSON)
  if isinstance(value, int | float):
    return st.one_of(NUMBERS, st.integers(0, 20), st.floats(0, 1), JSON)
  return JSON


@st.composite
def almost_json(draw, value):
  """Draws a file of JSON with a few values changed, or its bytes."""
  if draw(st.integers(0, 3)) == 0:
    return edited(json.dumps(value).encode(), draw(EDITS))
  value = json.loads(json.dumps(value))
  for _ in range(draw(st.integers(1, 2))):
    *above, last = draw(st.sampled_from(places(value)[1:] or [("none",)]))
    held = value
    for key in above:
      held = held[key]
    if not isinstance(held, dict | list):
      return draw(st.one_of(st.binary(max_size=20), st.just(DEEP)))
    what = draw(st.sampled_from(["set", "remove", "rename", "add"]))
    if what == "set" or isinstance(held, list):
      held[last] = draw(like(held[last]))
    elif what == "remove":
      del held[last]
    elif what == "rename":
      held[draw(WORDS)] = held.pop(last)
    else:
      held[draw(WORDS)] = draw(JSON)
  return json.dumps(value).encode()


# Flags.

CONFIG = quickstart.get_config()
FIELDS = sorted(config_files.flatten(CONFIG.to_dict()))
VALUES = st.one_of(
  NUMBERS.map(str),
  WORDS.map(lambda word: word.replace("\0", "")),
  st.sampled_from(
    [
      "()", "(1,)", "(1,2", "('a',)", "[1,2]", "((1,'conv1',0.1),)", "True",
      "((0,'conv1'),)", "('fc8',)", "('conv1','fc8')", "(nan,)", "1e400",
      "('conv1','conv1')", "((),)", "(None,)", "0x10", "1_0", "1j", "lambda:0",
      "towers", "owt_a", "fsdp", "lars", "bfloat16", "epochs", "dexp", "tanh",
      "((1,(2,),3),)", "(('conv1',-1),)", "(('conv1',1j),)", "{}", "{'a':1}",
    ]
  ),
)  # fmt: skip
TUPLES = VALUES.filter(lambda value: value.startswith("("))


@st.composite
def overrides(draw):
  """Draws fields and values, most of them of a field's type."""
  drawn = []
  for _ in range(draw(st.integers(1, 3))):
    if draw(st.integers(0, 9)) == 0:
      strange = ["network", "network.conv1", "x", "network.x.y", "seed.x", ""]
      field = draw(
        st.one_of(
          st.sampled_from(strange),
          st.text(max_size=5).map(lambda word: word.replace("\0", "")),
        )
      )
      drawn.append((field, draw(VALUES)))
      continue
    field = draw(st.sampled_from(FIELDS))
    match config_files.flatten(CONFIG.to_dict())[field]:
      case bool():
        likely = st.sampled_from(["true", "false", "1"])
      case int() | float() | None:
        likely = st.one_of(NUMBERS, st.integers(0, 20), st.floats(0, 2)).map(
          str
        )
      case tuple():
        likely = TUPLES
      case _:
        likely = VALUES
    drawn.append((field, draw(st.one_of(likely, likely, VALUES))))
  return drawn


@contextlib.contextmanager
def command_line(*words):
  """Yields with absl's flags as a process finds them."""
  before, names = sys.argv, set(flags.FLAGS)
  sys.argv = ["main", *words]
  on_sigterm = signal.getsignal(signal.SIGTERM)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # The config library's own.
      yield
  finally:
    sys.argv = before
    signal.signal(signal.SIGTERM, on_sigterm)
    for name in set(flags.FLAGS) - names:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["pytest"])


def use(config):
  """Does with a config what training does before it reads the data."""
  json.dumps(
    config_files.flatten(config.to_dict()), default=repr
  )  # As `agree` does.
  train._check_config(config)
  net = model.from_config(config)
  optimizer.check(config, networks.names(net.network))
  layouts.from_config(config, net.network, jax.device_count())
  held = statistics.Statistics(
    np.zeros((config.image_size_px,) * 2 + (3,), np.float32)
    if 0 < config.image_size_px < 1000
    else np.zeros((8, 8, 3), np.float32),
    np.eye(3, dtype=np.float32),
    np.ones(3, np.float32),
  )
  steps = config.total_steps or optimizer.step_of_epoch(
    config.total_epochs, 1000, config.batch_size
  )
  optimizer.from_config(config, 1000, steps)
  augment.from_config(config, held, 1000)


def run_command(*words):
  """Runs a command up to the data; returns its exit code and what it said."""
  said = io.StringIO()

  def main(_):
    use(config_files.config()[0])

  with (
    command_line(*words),
    contextlib.redirect_stderr(said),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    try:
      cli.run(main, config_files.define_config)
    except SystemExit as e:
      return e.code or 0, said.getvalue()
  return 0, said.getvalue()


@target(
  overrides(),
  examples=[
    ([("", "0")],),
    ([("seed.x", "0")],),
    ([("network.conv2.then", "(('conv1',1j),)")],),
  ],
)
def config_flags(drawn):
  words = [f"--config.{field}={value}" for field, value in drawn]
  with playground():
    code, said = run_command(*words)
  assert code in (0, 1), (words, code, said)
  if code:
    assert said.startswith("error: ")
    check_line(said)


@target(
  EDITS,
  examples=[([("set", 0.49, b"\r")],), ([("set", 0.38, b"\x0b")],)],
)
def digest_file(edits):
  with playground() as folder:
    (folder / "params").mkdir()
    for name in ("params/a", "params/b", "c"):
      (folder / name).write_text(name)
    digests.write(folder)
    assert not digests.problem(folder)
    file = folder / digests.NAME
    before = file.read_bytes()
    file.write_bytes(edited(before, edits))
    problem = digests.problem(folder)
    assert bool(problem) == (file.read_bytes() != before)
    assert len(problem.splitlines()) < 2


@target(st.one_of(WORDS, st.text(max_size=20)))
def splits_flag(text):
  with one_line():
    sources.SplitSpec.parse(text)


# Lists and archives.


def png(value, size=(16, 16), kind="PNG"):
  file = io.BytesIO()
  Image.new("RGB", size, (value, 100, 255 - value)).save(file, kind)
  return file.getvalue()


PICTURES = {
  f"{name}/{n}{suffix}": png(40 * n, kind=kind)
  for name in "ab"
  for n, (suffix, kind) in enumerate(
    [(".png", "PNG"), (".jpg", "JPEG"), (".gif", "GIF")]
  )
}


def tar_of(members, mode="w"):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
    link = tarfile.TarInfo("a/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "0.png"
    archive.addfile(link)
  return file.getvalue()


def zip_of(members):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return file.getvalue()


ARCHIVES = {
  "in.tar": tar_of(PICTURES),
  "in.tar.gz": tar_of(PICTURES, "w:gz"),
  "in.tar.xz": tar_of(PICTURES, "w:xz"),
  "in.zip": zip_of(PICTURES),
  "outer.tar": tar_of({"in.tar": tar_of(PICTURES)}),
}


def run_prepare(file, **options):
  """Prepares a file as the command does."""
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(file.parent / "out")
  prepare.prepare(
    str(file),
    file.parent / "out",
    size_px=16,
    skip_bad=True,
    workers=0,
    **options,
  )


@target(st.sampled_from(sorted(ARCHIVES)), EDITS)
def archive(name, edits):
  with playground() as work, one_line():
    (work / name).write_bytes(edited(ARCHIVES[name], edits))
    run_prepare(work / name)


NAMES = st.one_of(
  st.sampled_from(sorted(PICTURES)),
  st.sampled_from(sorted(PICTURES)).map(lambda name: f"train/{name}"),
  st.sampled_from(
    [
      "../x/0.png", "/a/0.png", "a/../b/0.png", "a", "a/b", ".", "..", "in.tar",
      "./a/9.png", "a/9.PNG", "a//9.png", "a/.hidden.png", "a/x.txt",
      "a/x/0.png",
    ]
  ),
  WORDS.map(lambda word: f"a/{word}.png"),
)  # fmt: skip
MEMBERS = st.lists(
  st.tuples(
    NAMES,
    st.one_of(
      st.just(tarfile.REGTYPE),
      st.sampled_from(
        [
          tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
          tarfile.CHRTYPE, tarfile.CONTTYPE, tarfile.AREGTYPE, b"9", b"S",
        ]
      ),
    ),
    st.one_of(NAMES, st.just("/etc/passwd"), st.just("../../canary")),
    st.one_of(
      st.sampled_from(list(PICTURES.values())),
      st.binary(max_size=20),
      st.sampled_from(list(PICTURES.values())).flatmap(
        lambda data: EDITS.map(lambda edits: edited(data, edits))
      ),
    ),
  ),
  max_size=6,
)  # fmt: skip


def plain(name):
  """Returns a name that Python's writers of archives take."""
  return name.encode("utf-8", "replace").decode().replace("\0", "")


def pack(kind, members):
  """Returns an archive that is whole, whatever its members are."""
  file = io.BytesIO()
  if kind == "in.zip":
    with zipfile.ZipFile(file, "w") as held:
      for name, _, _, data in members:
        held.writestr(plain(name) or "x", data)
    return file.getvalue()
  mode = {"in.tar.gz": "w:gz", "in.tar.xz": "w:xz"}.get(kind, "w")
  with tarfile.open(fileobj=file, mode=mode) as held:
    for name, what, link, data in members:
      info = tarfile.TarInfo(plain(name))
      info.type, info.linkname = what, plain(link)
      info.size = len(data) if info.isreg() else 0
      held.addfile(info, io.BytesIO(data))
  if kind == "outer.tar":
    return pack("in.tar", [("in.tar", tarfile.REGTYPE, "", file.getvalue())])
  return file.getvalue()


@target(st.sampled_from(sorted(ARCHIVES)), MEMBERS)
def archive_members(name, members):
  whole = [(n, tarfile.REGTYPE, "", data) for n, data in PICTURES.items()]
  with playground() as work, warnings.catch_warnings(), one_line():
    warnings.simplefilter("ignore")  # Of a name that a zip holds twice.
    (work / name).write_bytes(pack(name, whole + members))
    run_prepare(work / name)


@st.composite
def lines(draw):
  """Draws a list, most lines of which are right."""
  blank = draw(st.sampled_from([" ", "\t", ",", "  "]))
  split = draw(st.sampled_from(["", "", "train", "Test"]))
  text = ""
  for _ in range(draw(st.integers(0, 8))):
    columns = [draw(st.sampled_from(sorted(PICTURES)))]
    columns += [draw(st.sampled_from(["a", "b", "1", "10"])), split]
    if draw(st.integers(0, 5)) == 0:
      columns[draw(st.integers(0, 2))] = draw(WORDS)
    text += blank.join(filter(None, columns))
    text += draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", ""]))
  return text


LINES = lines()


@target(
  st.sampled_from(["list.txt", "list.csv", "list.tsv", "list.LST"]),
  st.one_of(
    st.binary(max_size=60),
    st.tuples(
      LINES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])
    ).map(lambda drawn: drawn[0].encode(drawn[1], "replace")),
  ),
  st.sampled_from(["", "train", "test=0.5", "train,test", "x=0.1"]),
  examples=[("list.txt", b"\x01\x1f\x01\n\x01\x1f\x02", "")],
)
def list_file(name, data, splits):
  with playground() as work, one_line():
    for path, picture in PICTURES.items():
      (work / path).parent.mkdir(exist_ok=True)
      (work / path).write_bytes(picture)
    (work / name).write_bytes(data)
    run_prepare(work / name, splits=splits)


@target(
  st.sampled_from(["words.txt", "words.json"]),
  st.one_of(
    st.binary(max_size=60),
    LINES.map(lambda text: text.encode("utf-8", "replace")),
    almost_json({"0": ["a", "ant"], "1": ["b", "bee"]}),
  ),
)
def synsets(name, data):
  with playground() as work, one_line():
    (work / "in.tar").write_bytes(ARCHIVES["in.tar"])
    (work / name).write_bytes(data)
    run_prepare(work / "in.tar", synsets=str(work / name))


# What a run left.

RECORD = {
  "step": 1, "epoch": 0.5, "split": "train", "loss": 2.3, "top1_error": 0.9,
}  # fmt: skip


@target(
  st.lists(
    st.one_of(
      almost_json(RECORD),
      JSON.map(lambda value: json.dumps(value).encode()),
      st.binary(max_size=20),
      st.just(json.dumps(RECORD).encode()),
    ),
    max_size=4,
  ),
  st.sampled_from([b"\n", b"\r\n", b"", b"\n\n"]),
  examples=[
    ([b"\x80", b"{}"], b"\n"),
    ([b'["step", "split"]', b"{}"], b"\n"),
    ([b'{"step": "1", "split": "train"}', b"{}"], b"\n"),
    ([DEEP, b"{}"], b"\n"),
  ],
)
def metrics_jsonl(lines, end):
  with playground() as work, one_line():
    (work / "metrics.jsonl").write_bytes(end.join(lines) + end)
    logs.NullLogger(work, 3, True).holds(1, "train")


@target(
  almost_json(CONFIG.to_dict()),
  examples=[(DEEP,), (b'{"__class__": 1}',), (b'{"a\\nb": "c\\nd"}',)],
)
def config_json(data):
  with playground() as work:
    (work / "config.json").write_bytes(data)
    with one_line():
      config_files.flatten(run_files.read_config(work).to_dict())
    with one_line(), run_files.claim_workdir(work, CONFIG):
      pass


PCA = {"axes_in_columns": np.eye(3).tolist(), "standard_deviations": [1, 2, 3]}


@target(
  almost_json(PCA),
  examples=[
    (DEEP,),
    (json.dumps(PCA | {"standard_deviations": [10**400] * 3}).encode(),),
  ],
)
def colour_pca_json(data):
  check_kept("colour_pca.json", data)


@target(almost_json(["ant", "bee"]), examples=[(DEEP,), (b'{"a": 1}',)])
def class_names_json(data):
  check_kept("class_names.json", data)


def npy(shape=(16, 16, 3), dtype=np.float32):
  file = io.BytesIO()
  np.save(file, np.zeros(shape, dtype))
  return file.getvalue()


@target(
  st.one_of(
    st.tuples(st.just(npy()), EDITS).map(lambda drawn: edited(*drawn)),
    st.builds(
      lambda old, new: npy().replace(old, new, 1),
      st.sampled_from([b"(16, 16, 3)", b"'<f4'", b"False", b"'descr'", b"{"]),
      st.sampled_from(
        [
          b"(9, 9, 3)", b"(99999999999, 99999999999, 3)", b"(-1, 16, 3)", b"()",
          b"'|O'", b"'<c8'", b"'<U9'", b"[('a','<f4')]", b"True", b"1e99", b"(",
          b"'<f8'", b"__import__('os')", b"(16, 16, 3.5)", b"(True, 1)",
        ]
      ),
    ),
    st.builds(npy, st.sampled_from([(), (0, 0, 3), (4, 5, 3), (16, 16)])),
    st.just(zip_of({"mean_image.npy": npy()})),
    st.binary(max_size=30),
  ),
  examples=[
    (zip_of({"mean_image.npy": npy()}),),
    (npy()[:64] + npy(),),
    (npy().replace(b"(16, 16, 3)", b"(99999999, 99999999, 3)"),),
  ],
)  # fmt: skip
def mean_image_npy(data):
  check_kept("mean_image.npy", data)


def check_kept(name, data):
  with playground() as work, one_line():
    for path in (dataset() / "array_record").iterdir():
      if path.name in statistics.FILES:
        shutil.copy(path, work)
    (work / "class_names.json").write_text('["ant", "bee"]')
    (work / name).write_bytes(data)
    run_files.read_run_metadata(work)


# TFDS directories.


def encode(value):
  pixels = np.random.default_rng(value).integers(0, 256, (16, 16, 3), np.uint8)
  return pixels, shards.encode_jpeg(pixels)


_MADE = []


def dataset():
  """Returns a folder with a directory of each kind, made once."""
  if not _MADE:
    home = Path(tempfile.mkdtemp())
    _MADE.append(home)
    atexit.register(shutil.rmtree, home)
    made = home / "array_record"
    items = [(n, n % 2) for n in range(6)]
    with shards.claim(made) as work:
      shards.write(
        work,
        made,
        {"train": items, "test": items[:2]},
        class_names=["ant", "bee"],
        size_px=16,
        encoder=encode,
        description="",
        workers=0,
      )
    shutil.copytree(made, home / "tfrecord")
    for split in ("train", "test"):
      opened = records.open_split(records.open_directory(made), split, "")
      (shard,) = (home / "tfrecord").glob(f"*-{split}.array_record*")
      written = b""
      for index in range(len(opened)):
        record = records.serialize(*opened[index])
        written += len(record).to_bytes(8, "little") + bytes(4)
        written += record + bytes(4)
      new = shard.with_name(shard.name.replace("array_record", "tfrecord"))
      shard.rename(new).write_bytes(written)
    info = home / "tfrecord" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
  return _MADE[0]


RUN = quickstart.get_config().unlock()
RUN.num_classes, RUN.image_size_px, RUN.reader_threads = 2, 16, 0


def use_dataset(directory, split="train"):
  """Reads a directory as training does."""
  opened = records.open_directory(directory)
  examples = records.open_split(opened, split, "train_split")
  batches.ShuffledBatches(len(examples), 2, 0, None)[0]
  ends = np.array([0, len(examples) - 1])
  batches.load(examples, ends, 16)
  checks.check(examples, RUN)


def use_changed(kind, name, data):
  with playground() as work:
    shutil.copytree(dataset() / kind, work / "set")
    (file,) = (work / "set").glob(name)
    file.write_bytes(data(file.read_bytes()))
    for split in ("train", "test[:1]"):
      with one_line():
        use_dataset(work / "set", split)


KINDS = st.sampled_from(["array_record", "tfrecord"])


def metadata(name):
  return almost_json(
    json.loads((dataset() / "array_record" / name).read_text())
  )


@target(KINDS, st.deferred(lambda: metadata("features.json")))
def features_json(kind, data):
  use_changed(kind, "features.json", lambda _: data)
  assert "evil_module" not in sys.modules


@target(KINDS, st.deferred(lambda: metadata("dataset_info.json")))
def dataset_info_json(kind, data):
  data = data.replace(b"array_record", kind.encode())
  use_changed(kind, "dataset_info.json", lambda _: data)


@target(KINDS, EDITS)
def label_names(kind, edits):
  use_changed(kind, "label.labels.txt", lambda data: edited(data, edits))


@target(KINDS, EDITS)
def shard(kind, edits):
  use_changed(kind, "*-train.*", lambda data: edited(data, edits))


@target(
  KINDS,
  st.one_of(
    WORDS,
    st.text("train[]:%+-0123456789() test", max_size=20),
    st.sampled_from(
      [
        "train[:50%]", "train[1:]+test", "all", "train[:-1]", "train[5:1]",
        "train[0:0]", "train[1shard]", "train[:9shard]", "train[:101%]",
        "train[99999999999999999999:]", "train[50%:](pct1_dropremainder)",
      ]
    ),
  ),
)  # fmt: skip
def split_name(kind, split):
  with playground(), one_line():
    use_dataset(dataset() / kind, split)


@target(
  st.one_of(WORDS, st.sampled_from(["~", "a/" * 3000])),
  examples=[("x" * 300,), ("a\nb",)],
)
def data_dir(path):
  with playground(), one_line():
    records.open_directory(Path(path))
