#!/usr/bin/env bash
# Ten steps of the full net on the same 64 photographs: does it learn them?
# usage: experiments/imagenet_sample/run.sh TAR_OF_CLASS_IMAGE NUM_CLASSES
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf data/imagenet_sample runs/imagenet_sample
.venv/bin/alexnet prepare --source="$1" \
  --output=data/imagenet_sample
.venv/bin/alexnet train --config=alexnet \
  --workdir=runs/imagenet_sample --config.data_dir=data/imagenet_sample \
  --config.num_classes="$2" --config.train_split='train[:64]' \
  --config.validation_split= --config.test_split= --config.schedule=epochs \
  --config.batch_size=64 \
  --config.total_steps=10 --config.log_every_steps=1
cp runs/imagenet_sample/metrics.jsonl experiments/imagenet_sample/
