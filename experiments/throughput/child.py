"""One contestant in a process of its own, told over a pipe what to do.

A request is a line of JSON, {"call": NAME, ...}; so is the answer, to the file
descriptor that it was started with as standard output.
"""

import json
import os
import sys
import time
import traceback
from typing import Any

CONTESTANTS = ("ours", "eager", "compiled")
CALLS = ("train", "forward", "augment", "answer", "epoch")


class Served:
  """What a process can be asked for."""

  def __init__(self, kind: str):
    """Imports one side only; `kind` is of `CONTESTANTS`."""
    if kind == "ours":
      import ours as side
    else:
      import torch_nets as side
    self.side: Any = side
    self.options = {} if kind == "ours" else {"compiled": kind == "compiled"}
    self.contestant: Any = None

  def about(self) -> Any:
    """Returns platform, device and versions."""
    return self.side.about()

  def flops(self, net: str) -> Any:
    """Returns FLOPs for one image; ours alone."""
    return self.side.flops(net)

  def gemm(self, size: int, repeats: int) -> float:
    """Returns FLOP/s."""
    return self.side.gemm(size, repeats)

  def choose(self, net: str, batch_size: int) -> Any:
    """Returns the fastest spellings; torch alone."""
    return self.side.choose(net, batch_size, **self.options)

  def build(self, net: str, batch_size: int, choices: Any) -> float:
    """Makes the net; returns the GB that the process then has had."""
    self.contestant = self.side.Contestant(
      net, batch_size, **self.options, **choices
    )
    return self.contestant.memory()

  def run(self, what: str, steps: int, images: int) -> float:
    """Returns the seconds of so many steps.

    Args:
      what: of `CALLS`.
      steps: how many.
      images: of an answer.
    """
    import inputs

    more = {}
    if what == "answer":
      more["images"] = inputs.examples(self.contestant.config, images)[0]
    start = time.perf_counter()
    getattr(self.contestant, what)(steps, **more)
    return time.perf_counter() - start

  def finish(self) -> dict[str, float]:
    """Returns the peak memory in GB and the last loss."""
    return {"peak_gb": self.contestant.memory(), "loss": self.contestant.loss}


def main() -> None:
  """Serves until its input ends."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  # What libraries print is not an answer.
  os.dup2(2, 1)
  served = Served(sys.argv[1])
  for line in sys.stdin:
    request = json.loads(line)
    try:
      result = getattr(served, request.pop("call"))(**request)
      answer = {"result": result}
    except Exception as e:
      traceback.print_exc()
      answer = {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
    answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
  main()
