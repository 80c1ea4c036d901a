"""A process of a run that does not train: it connects, compares and adds up.

It stands for `alexnet train` where only the processes are the claim.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.runtime import errors, hosts


def add_up():
  """Returns a sum over all processes, in which process I puts 10 ** I."""
  mesh = jax.make_mesh((jax.device_count(),), ("all",))
  rows = jax.NamedSharding(mesh, jax.P("all"))
  mine = np.array([10 ** jax.process_index()])
  ones = jax.make_array_from_process_local_data(rows, mine)
  everywhere = jax.NamedSharding(mesh, jax.P())
  return int(jax.jit(jnp.sum, out_shardings=everywhere)(ones))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  parser.add_argument("--timeout_s", type=int, default=60)
  parser.add_argument("--facts", type=json.loads, default={})
  parser.add_argument("--folder", type=Path)
  parser.add_argument("--bad", type=int, help="process with bad input")
  parser.add_argument("--ends", help="what the last process does meanwhile")
  known, others = parser.parse_known_args()
  flags = known.coordinator, known.num_processes, known.process_id
  with hosts.initialize(*flags, known.timeout_s):
    me, count = jax.process_index(), jax.process_count()
    hosts.assert_same_on_all_hosts(known.facts)
    with hosts.raise_on_all_hosts():
      if me == known.bad:
        raise errors.InputError("image 7 is damaged.")
    if known.folder:
      hosts.assert_shared_folder(known.folder)
    found = [count, me, add_up(), hosts.from_first(me)]
    found += [min(hosts.gather(10.0 - me)), others]
    print(json.dumps(found), flush=True)
    if known.ends and me == count - 1:
      if known.ends == "error":
        raise errors.InputError("image 8 is damaged.")
      os.kill(os.getpid(), getattr(signal, known.ends))
    while known.ends:
      add_up()


if __name__ == "__main__":
  try:
    main()
  except errors.InputError as e:
    print(f"error: {e}", file=sys.stderr, flush=True)
    os._exit(1)
