"""Measures training and answers beside torch, eager and compiled.

  pip install -e '.[peers]'
  python experiments/throughput/run.py          # results.csv, tables and plot
  python experiments/throughput/run.py --draw   # tables and plot anew

Each contestant has a process of its own, warm before the first trial; trials
alternate, and who does not run sleeps. Nothing else should be running. Both
sides are first made to agree (guard.py). A run replaces the rows of its
platform, cpu or gpu, and leaves the other's.
"""

import argparse
import concurrent.futures
import csv
import json
import os
import platform
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import child
import inputs
import report

HERE = Path(__file__).parent
TRIALS = 5
BATCHES = {"cpu": (32, 128), "gpu": (128, 1024, 4096)}
GEMMS = (2048, 4096, 8192)
TRIAL_S = {"cpu": 3.0, "gpu": 0.3}
"""What a trial is to take: it has as many steps as fit, but one at least."""
SLOW_S, SLOW_TRIALS = 10.0, 3
"""A step that takes longer has fewer trials."""
LIMIT_S = 600
"""For a call, the compilation of torch included."""
WARM_STEPS = 3
"""After so many training steps the peak memory is read."""

Row = dict[str, Any]


class Failed(Exception):
  """A contestant did not do what it was told."""


class Child:
  """A contestant's process."""

  def __init__(self, kind: str):
    """Starts it; `kind` is of `child.CONTESTANTS`."""
    self.kind = kind
    self.process = subprocess.Popen(
      [sys.executable, HERE / "child.py", kind],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      # The children share an accelerator.
      env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
      text=True,
    )

  def ask(self, call: str, **arguments: Any) -> Any:
    """Returns the answer.

    Raises:
      Failed: it is an error, or there is none in time.
    """
    assert self.process.stdin
    assert self.process.stdout
    try:
      self.process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
      self.process.stdin.flush()
    except BrokenPipeError:
      raise Failed("its process has ended") from None
    with selectors.DefaultSelector() as selector:
      selector.register(self.process.stdout, selectors.EVENT_READ)
      if not selector.select(LIMIT_S):
        self.process.kill()
        raise Failed(f"{call} took more than {LIMIT_S} s")
    line = self.process.stdout.readline()
    answer = json.loads(line) if line else {"error": "its process has ended"}
    if "error" in answer:
      raise Failed(answer["error"])
    return answer["result"]

  def cpu_s(self) -> float:
    """Returns the processor time that it has had."""
    try:
      stat = Path(f"/proc/{self.process.pid}/stat").read_text()
    except FileNotFoundError:
      return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

  def close(self) -> None:
    """Ends it."""
    assert self.process.stdin
    self.process.stdin.close()
    self.process.wait()


class Bench:
  """A run: what it is about, and its rows."""

  def __init__(self, args: argparse.Namespace):
    """Asks both sides where they are, and makes the plan."""
    self.rows: list[Row] = []
    self.choices: dict[tuple[str, str], Any] = {}
    self.contestants = [
      kind
      for kind in child.CONTESTANTS
      if not (args.nocompiled and kind == "compiled")
    ]
    sides = [self._once(kind, "about") for kind in ("ours", "eager")]
    if sides[0]["platform"] != sides[1]["platform"]:
      raise SystemExit(f"the sides are on different devices: {sides}")
    self.platform = "cpu" if sides[0]["platform"] == "cpu" else "gpu"
    batches = args.batches or BATCHES[self.platform]
    self.quick = args.quick
    self.about: dict[str, Any] = {
      "device": sides[0]["device"],
      "machine": f"{os.cpu_count()} cores, {platform.machine()}",
      "versions": ", ".join(side["versions"] for side in sides)
      + f", Python {platform.python_version()}",
      "commit": inputs.commit(),
      "contestants": self.contestants,
      "nets": args.nets,
      "batches": [2] if args.quick else list(batches),
      "gemms": [256] if args.quick else list(GEMMS),
      "trials": 1 if args.quick else args.trials,
      "answers": [1] if args.quick else [1, 256],
      "flops": {net: self._once("ours", "flops", net=net) for net in args.nets},
    }

  def _once(self, kind: str, call: str, **arguments: Any) -> Any:
    process = Child(kind)
    try:
      return process.ask(call, **arguments)
    finally:
      process.close()

  def _record(self, what: str, kind: str, value: Any, **more: Any) -> None:
    row = {"platform": self.platform, "what": what, "contestant": kind}
    self.rows.append(row | {"value": value} | more)
    print(json.dumps(self.rows[-1]), flush=True)

  def gemms(self) -> None:
    """Measures the ceiling."""
    children = [Child("ours"), Child("eager")]
    for size in self.about["gemms"]:
      repeats = 50 if self.platform == "gpu" else max(1, (4096 // size) ** 3)
      for trial in range(self.about["trials"]):
        for each in children:
          rate = each.ask("gemm", size=size, repeats=repeats)
          self._record(f"gemm_{size}", each.kind, rate, trial=trial)
    for each in children:
      each.close()

  def _choose(self, net: str, batch_size: int) -> None:
    """Lets torch find its fastest spellings, alone on the machine."""
    for kind in self.contestants[1:]:
      if (kind, net) not in self.choices:
        try:
          found = self._once(kind, "choose", net=net, batch_size=batch_size)
        except Failed as e:
          # What fails to compile here will say so in its own rows.
          print(f"{kind} chooses as eager does: {e}", flush=True)
          found = {}
        eager = self.choices.get(("eager", net), found)
        # A compiled graph is made for one count of threads.
        own = {"threads": eager["threads"], "optimizer": eager["optimizer"]}
        self.choices[kind, net] = eager | found | own
    self.about.setdefault("choices", {})[net] = {
      kind: self.choices[kind, net] for kind in self.contestants[1:]
    }

  def _warm(
    self, each: Child, net: str, batch_size: int, whats: list[str]
  ) -> dict[str, Any]:
    """Builds and compiles; returns steps of a trial of each, and memory."""
    choices = self.choices.get((each.kind, net), {})
    found: dict[str, Any] = {}
    try:
      found["before_gb"] = each.ask(
        "build", net=net, batch_size=batch_size, choices=choices
      )
      for what in whats:
        call = call_of(what)
        each.ask("run", **call, steps=WARM_STEPS if what == "train" else 1)
        if what == "train":
          found["peak_gb"] = each.ask("finish")["peak_gb"]
        found[what] = each.ask("run", **call, steps=1)
    except Failed as e:
      found["failed"] = str(e)
    return found

  def compare(self, combinations: list[tuple[str, int, list[str]]]) -> None:
    """Measures nets at batch sizes, whose processes are made together.

    Args:
      combinations: net, batch size, and what is timed, training first.
    """
    for net, batch_size, _ in combinations:
      self._choose(net, batch_size)
    crews = [[Child(k) for k in self.contestants] for _ in combinations]
    # Compilation takes most of the time; a CPU has no room for two.
    together = None if self.platform == "gpu" else 1
    with concurrent.futures.ThreadPoolExecutor(together) as pool:
      warm = [
        [pool.submit(self._warm, each, *combination) for each in crew]
        for crew, combination in zip(crews, combinations, strict=True)
      ]
    for combination, crew, futures in zip(
      combinations, crews, warm, strict=True
    ):
      self._alternate(*combination, crew, [f.result() for f in futures])
    for crew in crews:
      for each in crew:
        each.close()

  def _alternate(
    self,
    net: str,
    batch_size: int,
    whats: list[str],
    crew: list[Child],
    warm: list[dict[str, Any]],
  ) -> None:
    place = {"net": net, "batch": batch_size}
    able = []
    for each, found in zip(crew, warm, strict=True):
      if "failed" in found:
        for what in (*whats, "before_gb", "peak_gb"):
          note = found["failed"]
          self._record(what, each.kind, None, **place, note=note)
        continue
      able.append((each, found))
      for what in ("before_gb", "peak_gb"):
        self._record(what, each.kind, found[what], **place)
    for what in whats:
      slowest = max(found[what] for _, found in able)
      trials = self.about["trials"]
      for trial in range(
        min(trials, SLOW_TRIALS) if slowest > SLOW_S else trials
      ):
        # Nobody is always the first.
        turn = trial % len(able)
        for each, found in able[turn:] + able[:turn]:
          steps = max(1, round(TRIAL_S[self.platform] / found[what]))
          steps = 1 if self.quick else steps
          others = [other for other, _ in able if other is not each]
          idle = sum(other.cpu_s() for other in others)
          taken = each.ask("run", **call_of(what), steps=steps)
          idle = sum(other.cpu_s() for other in others) - idle
          self._record(
            what,
            each.kind,
            taken / steps,
            **place,
            trial=trial,
            steps=steps,
            idle_cpu_s=round(idle, 2),
          )
    for each, _ in able:
      loss = each.ask("finish")["loss"]
      if not loss == loss:
        raise SystemExit(f"{each.kind} has trained {net} to no number")

  def run(self) -> None:
    """Measures all that is planned."""
    self.gemms()
    parts = []
    for net in self.about["nets"]:
      whats = ["train", "forward", "augment"]
      group = [(net, batch, whats) for batch in self.about["batches"]]
      if net == self.about["nets"][0]:
        answers = [f"answer_{count}" for count in self.about["answers"]]
        group[0] = (*group[0][:2], whats + answers)
      parts += [group] if self.platform == "gpu" else [[c] for c in group]
    if self.platform == "gpu":
      parts.append([(inputs.EPOCH_NET, 128, ["train", "epoch"])])
    for group in parts:
      self.compare(group)


def call_of(what: str) -> dict[str, Any]:
  """Returns what a child is asked for; `answer_256` is of 256 images."""
  call, _, images = what.partition("_")
  return {"what": call, "images": int(images or 0)}


def save(bench: Bench, folder: Path) -> None:
  """Writes results.csv and about.json, beside the other platform's."""
  rows, about = report.read(folder)
  kept = [row for row in rows if row["platform"] != bench.platform]
  about[bench.platform] = bench.about
  names = (
    *("platform", "net", "batch", "what", "contestant", "trial", "steps"),
    *("value", "idle_cpu_s", "note"),
  )
  with (folder / "results.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(kept + bench.rows)
  (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def numbers(text: str) -> list[int]:
  """Returns the numbers of a flag."""
  return [int(word) for word in text.split(",")]


def main() -> None:
  """Checks, measures and draws."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--trials", type=int, default=TRIALS)
  parser.add_argument("--batches", type=numbers, help="such as 32,128")
  parser.add_argument(
    "--nets", type=lambda text: text.split(","), default=list(inputs.NETS)
  )
  parser.add_argument("--quick", action="store_true", help="batch 2, one trial")
  parser.add_argument("--nocompiled", action="store_true")
  parser.add_argument("--draw", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=HERE)
  args = parser.parse_args()
  if not args.draw:
    start = time.perf_counter()
    checked = [*args.nets] + [inputs.EPOCH_NET] * (not args.quick)
    guard = [sys.executable, HERE / "guard.py", f"--nets={','.join(checked)}"]
    subprocess.run(guard, check=True)
    bench = Bench(args)
    bench.run()
    bench.about["seconds"] = round(time.perf_counter() - start)
    args.out.mkdir(parents=True, exist_ok=True)
    save(bench, args.out)
  report.write(args.out)


if __name__ == "__main__":
  main()
