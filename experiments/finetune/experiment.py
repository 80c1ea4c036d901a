"""What is another net's training worth to a net of other classes?

Both arms see the same images of five classes for as many steps, at the same
rates; one starts from a net that has learned the other five.
"""

from experiments.harness.plan import Arm, Experiment

CONFIG = "configs/alexnet_cifar10.py"
FIELDS = {
  "data_dir": "data/cifar10_odd",
  "num_classes": 5,
  "total_epochs": 2.0,
}

EXPERIMENT = Experiment(
  arms=(
    Arm("scratch", CONFIG, fields=FIELDS, seeds=5),
    Arm(
      "finetune",
      CONFIG,
      "from the net of the other five classes, its last layer drawn anew",
      FIELDS
      | {
        "init_from": "runs/finetune/even",
        "init_inherits": True,
        "reinit_layers": ("fc8",),
      },
      original="they transfer: arXiv 1411.1792",
      sign=-1,
      seeds=5,
    ),
  ),
  metric="ten_view_error",
)
