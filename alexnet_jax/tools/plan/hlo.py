"""The arrays that devices exchange, read from a compiled program's HLO text."""

import dataclasses
import math
import re

KINDS = (
  "all-reduce", "all-gather", "reduce-scatter", "collective-permute",
  "all-to-all", "collective-broadcast",
)  # fmt: skip


def itemsize(dtype: str) -> int:
  """Returns the bytes of one element, from XLA's type name such as bf16."""
  bits = re.search(r"\d+", dtype)
  return int(bits[0]) // 8 if bits else 1  # pred has no number


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange.

  `elements` is the size of the whole array: the input of an all-reduce, a
  reduce-scatter or a permutation, the output of an all-gather.
  """

  kind: str  # one of `KINDS`
  dtype: str  # XLA's name of its type, such as f32
  elements: int
  group_size: int  # devices in a group; for a permutation, those that receive

  @property
  def is_sent(self) -> bool:
    """Whether anything moves: a group of one device exchanges nothing."""
    return self.group_size > 1 or self.kind == "collective-permute"

  def received(self, devices: int) -> float:
    """Returns the bytes that one of all devices receives, on average.

    A ring of n devices passes 2 (n - 1) / n of the array to each device in an
    all-reduce and half of that in the other kinds. In a permutation the
    receivers get the array and the other devices get nothing.
    """
    size = self.elements * itemsize(self.dtype)
    if self.kind == "collective-permute":
      return size * self.group_size / devices
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * (self.group_size - 1) / self.group_size * size


_INSTRUCTION = re.compile(
  rf"= (.*?) ({'|'.join(KINDS)})\(.*?\)(, .*)?$", re.MULTILINE
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def read(text: str) -> list[Collective]:
  """Returns the arrays that a compiled program exchanges, from optimized HLO.

  Each array of an instruction is listed, in a loop once. Groups of one device
  are left out, since they exchange nothing.
  """
  partitions = re.search(r"num_partitions=(\d+)", text)
  devices = int(partitions[1]) if partitions else 1
  found = []
  for result, kind, attributes in _INSTRUCTION.findall(text):
    group_size = _group_size(kind, attributes, devices)
    for dtype, shape in _ARRAY.findall(result):
      elements = math.prod(int(side) for side in shape.split(",") if side)
      if kind == "reduce-scatter":
        elements *= group_size
      found.append(Collective(kind, dtype, elements, group_size))
  return [collective for collective in found if collective.is_sent]


def _group_size(kind: str, attributes: str, devices: int) -> int:
  """Returns `Collective.group_size`; XLA writes groups in four notations."""
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", attributes)
    return pairs[1].count("{") if pairs else 0
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(listed[1].split(","))
  if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
    return int(counted[1])
  if mesh := re.search(
    r"replica_groups=mesh\[(.*?)\].*?\{([^}]*)\}", attributes
  ):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", mesh[2]))
  return devices  # {} is one group of all devices
