"""What is each part of AlexNet worth, on CIFAR-10?

The two-tower net scaled to 32 px (configs/alexnet_cifar10.py), and one change
at a time. Each change is one of configs/ablations.py, with the same rates, the
same length, the same seeds; the base alone was tuned, on validation images.
"""

import dataclasses

from alexnet_jax.configs import ablations
from experiments.harness.plan import Arm, Experiment

BASE = "alexnet_cifar10"
# The original's effect on the error: its sign, its points where a number is
# given, and whether it is the paper's. The others are run 150's and
# caffenet-benchmark's; of tanh the paper gives the speed alone.
ORIGINALS = {
  "tanh": (1, 7.0, False),
  "linear": (1, 8.2, False),
  "no_overlap": (1, 0.4, True),
  "no_lrn": (1, 1.4, True),
  "no_dropout": (1, None, True),
  "one_tower": (-1, -1.6, False),
  "half_tower": (1, 1.7, True),
  "no_links": (1, 1.2, False),
  "no_colour_noise": (1, 1.0, True),
  "no_crops": (1, None, True),
  "no_mirror": (1, None, True),
  "no_conv2": (1, 2.0, True),
  "no_conv3": (1, 2.0, True),
  "no_conv4": (1, 2.0, True),
  "one_view": (1, 1.5, True),
}
CAVEATS = {"no_overlap": "confounded by its grids"}
NO_ORIGINAL = (
  "inverted_dropout",
  "no_conv1",
  "no_conv5",
  "scaled_tanh",
  "sigmoid",
  "average_pool",
  "lrn_conv1",
  "lrn_conv2",
  "caffe_lrn",
)


# What sees the pixels has the rates and the first weights for them.
FIELDS = {
  "no_conv1": {
    "network.conv2.sigma": 0.01,
    "learning_rate_of_layers": (
      (0.0, "conv2", 0.00075), (8.0, "conv2", 0.0003), (12.0, "conv2", 0.0001),
    ),
  },
}  # fmt: skip


def _ablation(name: str) -> Arm:
  sign, points, of_paper = ORIGINALS.get(name, (0, None, False))
  return Arm(
    name,
    f"configs/ablations.py:{name}@{BASE}",
    ablations.ABLATIONS[name].change,
    FIELDS.get(name, {}),
    original=ablations.ABLATIONS[name].effect,
    sign=sign,
    points=points,
    of_paper=of_paper,
    caveat=CAVEATS.get(name, ""),
  )


ONE_VIEW = dataclasses.replace(
  _ablation("one_view"),
  config=f"configs/{BASE}.py",
  nets_of="base",
  metric="one_view_error",
)
TRAINED = (*(x for x in ORIGINALS if x != ONE_VIEW.name), *NO_ORIGINAL)


EXPERIMENT = Experiment(
  arms=(
    Arm("base", f"configs/{BASE}.py", seeds=7),
    *map(_ablation, TRAINED),
    Arm(
      "run145",
      f"configs/ablations.py:run_lrn@{BASE}",
      "as run 145: its norms, a crop for 32 images, images / 1.1, biases at"
      " twice the rate to the end and without decay",
      {
        "images_per_view": 32,
        "colour_noise_divisor": 1.1,
        "weight_decay_of_biases": False,
        "learning_rate_of_biases": 2.0,
        "schedule_of_biases": "constant",
      },
      original="none given: 40.7 / 18.2 is run 145's",
    ),
    ONE_VIEW,
  ),
  metric="ten_view_error",
)
