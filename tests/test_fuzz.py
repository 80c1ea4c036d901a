"""Whatever a user's files and flags hold: it works, or one line says why not.

Each target is one kind of input. `FUZZ_EXAMPLES` is how many are tried of each;
experiments/faults/fuzz.py tries them for minutes.
"""

import contextlib
import functools
import io
import json
import os
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from commands import command_line
from directories import write_shards
from hypothesis import strategies as st

from alexnet_jax import networks, optimizer
from alexnet_jax.configs import quickstart
from alexnet_jax.data import batches, checks, records
from alexnet_jax.data.prepare import prepare, shards
from alexnet_jax.parallel import layouts
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors

pytestmark = pytest.mark.slow  # Forty examples of each.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
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

  def stop(*_):
    raise TimeoutError(f"it runs for more than {HANGS_AFTER_S} s")

  @hypothesis.given(strategy)
  def test(drawn):
    on_example()
    signal.alarm(HANGS_AFTER_S)
    holds(*drawn)

  for drawn in examples:
    test = hypothesis.example(drawn)(test)
  before = signal.signal(signal.SIGALRM, stop)
  try:
    settings(test)()
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", TARGETS.keys())
def test_it_works_or_one_line_says_why_not(name):
  settings = hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, **SETTINGS
  )
  attempt(name, settings)


@contextlib.contextmanager
def one_line():
  """Lets bad input end in one line, and nothing else."""
  try:
    yield
  except errors.InputError as e:
    # Images that cannot be read are listed below, indented.
    lines = str(e).splitlines()
    if not lines or any(not line.startswith("  ") for line in lines[1:]):
      raise AssertionError(str(e)) from e


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
    st.sampled_from(["set", "set", "insert", "cut"]),
    st.floats(0, 1),
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
    if what == "cut":
      data = data[:at]
    else:
      data = data[:at] + new + data[at + (what == "set") * len(new) :]
  return data


NUMBERS = st.one_of(
  st.integers(-3, 300),
  st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400]),
  st.floats(),
)
WORDS = st.one_of(
  st.sampled_from(
    ["", "..", "../canary", "/etc/passwd", "a\nb", "\0", "\ud800", "nan", "{",
     "9" * 5000, "evil_module.Feature", "{SPLIT}", "__class__", "\u2028"]
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


@st.composite
def almost(draw, data):
  """Draws bytes of a file: edited, or of JSON with another value somewhere."""
  if draw(st.booleans()) or data[:1] not in b"[{":
    return edited(data, draw(EDITS))
  tree = inner = json.loads(data)
  while True:
    keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
    key = draw(st.sampled_from(keys))
    is_leaf = not inner[key] or not isinstance(inner[key], dict | list)
    if is_leaf or draw(st.booleans()):
      break
    inner = inner[key]
  if isinstance(inner, dict) and draw(st.booleans()):
    inner[draw(WORDS)] = inner.pop(key)
  else:
    inner[key] = draw(JSON)
  return json.dumps(tree).encode()


# Flags.

CONFIG = quickstart.get_config()
FIELDS = config_files.flatten(CONFIG.to_dict())
VALUES = st.one_of(
  NUMBERS.map(str),
  st.integers(0, 20).map(str),
  WORDS.map(lambda word: word.replace("\0", "")),
  st.sampled_from(
    ["()", "(1,)", "(1,2", "('a',)", "[1,2]", "((1,'conv1',0.1),)", "True",
     "((0,'conv1'),)", "('conv1','fc8')", "(nan,)", "1e400", "((),)", "1_0",
     "(None,)", "1j", "lambda:0", "towers", "owt_a", "lars", "dexp", "tanh",
     "(('conv1',-1),)", "{'a':1}", "('fc8',)", "bfloat16", "None"]
  ),
)  # fmt: skip
NAMES = st.one_of(
  st.sampled_from(sorted(FIELDS)),
  st.sampled_from(sorted(FIELDS)),
  st.sampled_from(["network", "network.conv1", "x", "network.x.y", ""]),
)


def use(config):
  """Does with a config what training does before it reads the data."""
  config_files.check(config)
  network = networks.make_model(config).network
  layouts.from_config(config, network, 8)
  optimizer.from_config(config, 1000, config.total_steps or 100)


@target(
  st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=3),
  examples=[
    ([("", "0")],),
    ([("seed.x", "0")],),
    ([("network.conv2.then", "(('conv1',1j),)")],),
  ],
)
def config_flags(drawn):
  words = [f"--config.{field}={value}" for field, value in drawn]
  said = io.StringIO()
  with (
    playground(),
    command_line("main", *words),
    contextlib.redirect_stderr(said),
    pytest.raises(SystemExit) as end,
  ):
    cli.run(lambda _: use(config_files.config()[0]), config_files.define_config)
  assert end.value.code in (0, 1, None), words
  if end.value.code:
    assert said.getvalue().startswith("error: ")
    assert len(said.getvalue().splitlines()) == 1


# Archives of images.


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
JPEG = shards.encode_jpeg(PIXELS)
ODD_NAMES = st.sampled_from(
  ["../x/0.png", "/a/0.png", "a/../b/0.png", "a", ".", "..", "in.tar", "a/b",
   "./a/9.png", "a/9.PNG", "a//9.png", "a/.hidden.png", "a/x/0.png", "a/0.png"]
)  # fmt: skip
ODD_LINKS = st.sampled_from(["", "a/0.png", "/etc/passwd", "../../canary"])


def pack(members):
  """Returns a tar of (name, link, data); symbolic links where there is one."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as archive:
    for name, link, data in members:
      info = tarfile.TarInfo(name)
      info.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
      info.linkname, info.size = link, 0 if link else len(data)
      archive.addfile(info, io.BytesIO(data))
  return file.getvalue()


@target(
  st.lists(st.tuples(ODD_NAMES, ODD_LINKS, almost(JPEG)), max_size=4),
  st.one_of(st.just([]), EDITS),
)
def archive(odd, edits):
  members = [(f"{name}/{n}.png", "", JPEG) for name in "ab" for n in range(3)]
  with playground() as work, one_line():
    file = work / "in.tar"
    file.write_bytes(edited(pack(members + odd), edits))
    prepare.prepare(
      str(file), work / "out", size_px=16, skip_bad=True, workers=0
    )


# Data sets.


@functools.cache
def dataset():
  with tempfile.TemporaryDirectory() as home:
    items = [(n, n % 2) for n in range(6)]
    made = write_shards(
      Path(home) / "set",
      {"train": items, "test": items[:2]},
      ["ant", "bee"],
      16,
      lambda item: (PIXELS, JPEG),
    )
    return {file.name: file.read_bytes() for file in made.iterdir()}


@target(
  st.deferred(lambda: st.sampled_from(sorted(dataset()))).flatmap(
    lambda name: st.tuples(st.just(name), almost(dataset()[name]))
  ),
  st.one_of(st.just("train"), st.text("train[]:%+-0123456789", max_size=12)),
)
def data_directory(changed, split):
  config = CONFIG.copy_and_resolve_references().unlock()
  config.update(num_classes=2, image_size_px=16, reader_threads=1)
  with playground() as work, one_line():
    for name, data in (dataset() | dict([changed])).items():
      (work / name).write_bytes(data)
    examples = records.open_split(records.open_directory(work), split, "")
    batches.load(examples, np.array([0, len(examples) - 1]), 16)
    checks.check({"train": examples}, config)
  assert "evil_module" not in sys.modules
