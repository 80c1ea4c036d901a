"""What is it worth to average several nets?

Seven nets of the ablations' base, from seven seeds.
"""

from experiments.harness.plan import Arm, Experiment

EXPERIMENT = Experiment(
  arms=(
    Arm(
      "base",
      "configs/alexnet_cifar10.py",
      original="five nets: 40.7 to 38.1 % top-1, 18.2 to 16.4 % top-5 (6)",
      sign=-1,
      points=38.1 - 40.7,
      seeds=7,
    ),
  ),
  metric="ten_view_error",
  keeps_answers=True,
)
