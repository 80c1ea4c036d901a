#!/usr/bin/env bash
# Trains in two processes of this machine, over gloo: launch/two_process.sh FLAGS
set -eu
python=${PYTHON:-.venv/bin/python}
port=$($python -c 'import socket as s; print(s.create_server(("", 0)).getsockname()[1])')
processes=()
# Without mercy: what jax has joined does not end by SIGTERM.
trap 'kill -KILL "${processes[@]}" 2> /dev/null || true' EXIT
trap 'exit 130' INT TERM
for id in 0 1; do
  JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 $python -m alexnet_jax.main \
    --coordinator=localhost:"$port" --num_processes=2 --process_id=$id "$@" \
    > >(sed -u "s/^/$id| /") 2>&1 &
  processes+=($!)
done
# If one fails, jax ends the other within half a minute.
status=0
for process in "${processes[@]}"; do
  wait "$process" || status=1
done
exit $status
