#!/usr/bin/env bash
# Two data sets of five classes of CIFAR-10 each, and a net of the first.
#
#   experiments/finetune/source.sh cifar10_jpeg.tar.xz
#
# The archive holds train/CLASS/*.jpg and test/CLASS/*.jpg.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/odd/{train,test}
tar -xf "$1" --one-top-level="$work/even"
for class in automobile cat dog horse truck; do
  for split in train test; do
    mv "$work/even/$split/$class" "$work/odd/$split/"
  done
done
for half in even odd; do
  alexnet prepare --source="$work/$half" \
    --output="data/cifar10_$half" --size=32
done
alexnet train --config=alexnet_cifar10 \
  --config.data_dir=data/cifar10_even --config.num_classes=5 \
  --workdir=runs/finetune/even
