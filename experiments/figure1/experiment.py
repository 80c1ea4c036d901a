"""Fig. 1: how much sooner does a net of ReLUs learn than one of tanh units?

The four-layer net on all 50,000 training images, whole, with nothing that
regularizes. Each kind of unit has the best rate of the same grid: that with the
lowest training error after two passes of one net.
"""

from experiments.harness.plan import Arm, Experiment

NO_ORIGINAL = "none"
UNITS = {
  "relu": "25 % after about 6 passes (Fig. 1)",
  "tanh": "six times as many passes as ReLU (3.1, Fig. 1)",
  "scaled_tanh": NO_ORIGINAL,
  "sigmoid": NO_ORIGINAL,
}
TIMES = {"tanh": 6.0}  # The original's ratios of passes to ReLU's.
RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
# The verdict checks them against the grid's results.
CHOSEN = {"relu": 0.004, "tanh": 0.016, "scaled_tanh": 0.008, "sigmoid": 0.008}
GRID_EPOCHS = 2.0
# When to give up; no rate depends on it.
EPOCHS = {"relu": 60.0, "tanh": 60.0, "scaled_tanh": 60.0, "sigmoid": 20.0}
TARGET = 0.25


def _arm(name: str, units: str, rate: float, epochs: float, seeds: int) -> Arm:
  fields = {
    "network.activation": units,
    "learning_rate": rate,
    "learning_rate_drop_epochs": (1000.0,),
    "weight_decay": 0.0,
    "weight_decay_of_layers": (),
    "stop_at_train_error": TARGET,
    "total_epochs": epochs,
    "log_every_steps": 98,
    "check_learning_after_steps": 1955,  # five passes
  }
  config = "configs/cifar_19pct.py"
  change = f"{units} at the rate {rate:g}"
  return Arm(name, config, change, fields, UNITS[units], seeds=seeds)


EXPERIMENT = Experiment(
  arms=(
    *(_arm(units, units, CHOSEN[units], EPOCHS[units], 5) for units in UNITS),
    *(
      _arm(f"{units}-{rate:g}", units, rate, GRID_EPOCHS, 1)
      for units in UNITS
      for rate in RATES
    ),
  ),
  metric="epochs_to_target",
)
