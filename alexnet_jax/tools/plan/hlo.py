"""What a compiled program says that devices exchange, read from its HLO."""

import dataclasses
import math
import re

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4} | {
  "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1,
}  # fmt: skip
"""Of one element, by XLA's name of its type."""

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange.

  Attributes:
    kind: of `KINDS`.
    dtype: XLA's name of its type, such as f32.
    elements: of the whole array: what each device brings to an all-reduce or a
      reduce-scatter, what an all-gather leaves, what a permutation hands on.
    parties: devices in a group; of a permutation, those that receive.
  """

  kind: str
  dtype: str
  elements: int
  parties: int

  @property
  def size(self) -> int:
    """Bytes of the whole array."""
    return self.elements * BYTES[self.dtype]

  def received(self, devices: int) -> float:
    """Returns the bytes that a device receives, on the mean over all devices.

    Arrays go around a ring of n devices: 2 (n - 1) / n of the array for an
    all-reduce, half of that for all others. In a collective-permute those that
    are targets receive the array, the others nothing.

    Args:
      devices: how many take part in the step.
    """
    if self.kind == "collective-permute":
      return self.size * self.parties / devices
    turns = 2 if self.kind == "all-reduce" else 1
    return turns * (self.parties - 1) / self.parties * self.size


_INSTRUCTION = re.compile(
  rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(.*?\)(, .*)?$", re.MULTILINE
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$", re.MULTILINE)


def read(text: str) -> tuple[list[Collective], list[Collective]]:
  """Returns the arrays that a compiled program exchanges.

  One instruction may carry many arrays; each is an entry of its own. Groups of
  one device, which move nothing, are left out.

  Args:
    text: of the optimized HLO.

  Returns:
    All of them, and those among them that stand in a loop and are exchanged in
    each of its turns.
  """
  partitions = re.search(r"num_partitions=(\d+)", text)
  devices = int(partitions[1]) if partitions else 1
  bodies = _computations(text)
  looping = _looping(bodies)
  found, looped = [], []
  for name, body in bodies.items():
    for result, kind, start, rest in _INSTRUCTION.findall(body):
      parties = _parties(kind, rest, devices)
      outputs = _ARRAY.findall(result)
      if start and kind != "all-reduce":
        # Operands, results, and words of its own that hold no number of ours.
        outputs = [o for o in outputs if o != ("u32", "")]
        outputs = outputs[len(outputs) // 2 :]
      if parties == 1 and kind != "collective-permute":
        continue
      for dtype, shape in outputs:
        elements = math.prod(int(n) for n in shape.split(",") if n)
        if kind == "reduce-scatter":
          elements *= parties
        found.append(Collective(kind, dtype, elements, parties))
        if name in looping:
          looped.append(found[-1])
  return found, looped


def _computations(text: str) -> dict[str, str]:
  """Returns the body of each computation of a program, by name."""
  heads = list(_COMPUTATION.finditer(text))
  ends = [head.start() for head in heads[1:]] + [len(text)]
  return {
    head[1]: text[head.end() : end]
    for head, end in zip(heads, ends, strict=True)
  }


def _looping(bodies: dict[str, str]) -> set[str]:
  """Returns the computations that loops run, and what those call."""
  found: set[str] = set()
  waiting = re.findall(r"body=%?([\w.-]+)", "\n".join(bodies.values()))
  while waiting:
    name = waiting.pop()
    if name not in found:
      found.add(name)
      called = re.findall(r"%?([\w.-]+)", bodies.get(name, ""))
      waiting += [word for word in called if word in bodies]
  return found


def _parties(kind: str, attributes: str, devices: int) -> int:
  """Returns the devices of a group, or those that receive in a permutation.

  Args:
    kind: of the collective.
    attributes: what follows its operands.
    devices: of the program, all of which are in a group that is not listed.
  """
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
  return devices
