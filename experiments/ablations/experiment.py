"""What is each part of AlexNet worth, on CIFAR-10?

The two-tower net scaled to 32 px (configs/alexnet_cifar10.py), and one change
at a time. Each change is one of configs/ablations.py, with the same rates, the
same length, the same seeds; the base alone was tuned, on validation images.
"""

from alexnet_jax.configs import ablations
from experiments.harness.plan import Arm, Experiment

BASE = "alexnet_cifar10"
# The sign of the original's effect on the error.
SIGNS = {
  "tanh": 1,
  "linear": 1,
  "no_overlap": 1,
  "no_lrn": 1,
  "no_dropout": 1,
  "one_tower": -1,
  "half_tower": 1,
  "no_links": 1,
  "no_colour_noise": 1,
  "no_crops": 1,
  "no_mirror": 1,
  "no_conv2": 1,
  "no_conv3": 1,
  "no_conv4": 1,
}
UNSIGNED = (
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
  return Arm(
    name,
    f"configs/ablations.py:{name}@{BASE}",
    ablations.ABLATIONS[name].change,
    FIELDS.get(name, {}),
    original=ablations.ABLATIONS[name].effect,
    sign=SIGNS.get(name, 0),
  )


EXPERIMENT = Experiment(
  arms=(
    Arm("base", f"configs/{BASE}.py", seeds=7),
    *map(_ablation, (*SIGNS, *UNSIGNED)),
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
    Arm(
      "one_view",
      f"configs/{BASE}.py",
      ablations.ABLATIONS["one_view"].change,
      original=ablations.ABLATIONS["one_view"].effect,
      sign=1,
      nets_of="base",
      metric="one_view_error",
    ),
  ),
  metric="ten_view_error",
)
