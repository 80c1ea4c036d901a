"""The runs of 2012: their configs against the values of the original files."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from alexnet_jax import model, networks, optimizer
from alexnet_jax.layers.run131 import Blur, ContrastNorm
from alexnet_jax.runs import config_files

# Values of layers-RUN.cfg and layer-params-RUN.cfg, of
# computerhistory/AlexNet-Source-Code: towers "a" alone; epochs count from 1.
VALUES = Path(__file__).parent / "support" / "runs_2012.json"
RUNS = json.loads(VALUES.read_text())["runs"]
CONFIGS = {
  name: f"run{name.replace('-', '_')}"
  for name in RUNS
  if "events" in RUNS[name]
} | {"146-2012-2011": "run146"}
WITH_LAYERS = [name for name in CONFIGS if "layers" in RUNS[name]]
BY_HAND = [  # Rates that were lowered by hand, from 0.01.
  "145", "145-2010", "145-half", "147", "148", "150", "131", "135",
]  # fmt: skip
BY_SCHEDULE = ["166", "167", "170", "177"]


def load(run):
  return config_files.load_config(CONFIGS[run])


def test_values_are_those_of_the_list_beside_this_clone():
  """The list was made from the original files, apart from these configs."""
  beside = [*Path(__file__).parents[2].glob("*/reference/runs_2012.json")]
  if not beside:
    pytest.skip("no list of the original values beside this clone")
  assert json.loads(beside[0].read_text())["runs"] == RUNS


def steps_of_the_file(run):
  """Returns what the original net computes, in order, both towers together."""
  layers, params = RUNS[run]["layers"], RUNS[run]["params_at_the_end"]
  towers = 1 + any("b'" in f"{layer.get('inputs')}" for layer in layers)
  by_name = {layer["name"]: layer for layer in layers}
  steps = []

  def weighted(kind, layer, outputs, index, inputs, more):
    def of(name):
      value = layer.get(name, 0)
      return value[index] if isinstance(value, list) else value

    seen = "image" if inputs[0] in ("data", "nails0") else "own"
    seen = "all" if len(inputs) > 1 or (towers == 1 and seen == "own") else seen
    bias = layer.get("initB", 0) if index == 0 or more else None
    numbers = [of(x) for x in ("filterSize", "stride", "padding")]
    steps.append((kind, outputs, *numbers, seen, of("initW"), bias))

  for layer in layers:
    inputs = layer["inputs"]
    inputs = inputs if isinstance(inputs, list) else [inputs]
    name, end = layer["name"], params.get(layer["name"], {})
    size = layer.get("size", 0)
    norm = (end.get("scale", 0), end.get("pow"), end.get("minDiv", 1))
    both = towers if name.endswith("a") else 1
    match layer["type"]:
      case "conv":
        filters = layer["filters"]
        filters = both * (filters[0] if isinstance(filters, list) else filters)
        if inputs[0] == "nails0":  # A second convolution, over pool1.
          weighted("conv", layer, filters, 1, inputs[1:], True)
          # Our order begins with the branch over the blurred image.
          before = steps.copy()
          steps.clear()
          blur, nails = by_name["blur0"], by_name["nails0"]
          window = (blur["stdev"], blur["filterSize"], nails["stride"])
          steps.append(("blur", *window))
          first = {k: v[0] for k, v in layer.items() if isinstance(v, list)}
          first = layer | first | {"initB": None}
          weighted("conv", first, filters, 0, ["nails0"], True)
          steps += before
        else:
          weighted("conv", layer, filters, 0, inputs, True)
      case "fc":
        weighted("fc", layer, both * layer["outputs"], 0, inputs, True)
      case "cmrnorm":
        steps.append(("lrn", size, norm[0] / size, *norm[1:]))
      case "rnorm":
        steps.append(("map norm", size, norm[0] / size**2, *norm[1:]))
      case "cnorm":
        steps.append(("contrast norm", size, norm[0] / size**2, *norm[1:]))
      case "pool":
        assert layer["pool"] == "max"
        steps.append(("max pool", layer["sizeX"], layer["stride"]))
      case "hs":
        steps.append(("dropout", round(1 - layer["keep"], 9)))
    if layer.get("neuron"):
      steps.append((layer["neuron"],))
  return steps


def steps_of_the_config(run):
  config = load(run)
  towers = config.network.towers
  net = networks.from_config(config)
  steps = []
  for row in networks.rows(net):
    match row.layer:
      case model.Conv() | model.Dense() as layer:
        seen = "all" if layer.towers == 1 else "own"
        if layer.name in ("conv1", "conv2_image"):
          seen = "image"
        numbers = (
          ("conv", layer.filters, layer.kernel, layer.stride, layer.padding)
          if isinstance(layer, model.Conv)
          else ("fc", layer.units, 0, 0, 0)
        )
        steps.append((*numbers, seen, layer.sigma, layer.bias))
      case model.LocalResponseNorm() as x:
        assert x.towers == towers
        steps.append(("lrn", x.window, x.alpha, x.beta, x.k))
      case ContrastNorm() as x:
        steps.append(("contrast norm", x.window, x.alpha, x.beta, x.k))
      case model.MapNorm() as x:
        steps.append(("map norm", x.window, x.alpha, x.beta, x.k))
      case Blur() as x:
        steps.append(("blur", x.sigma, x.window, x.stride))
      case model.MaxPool() as x:
        assert x.ceil_mode
        steps.append(("max pool", x.window, x.stride))
      case model.Dropout() as x:
        assert not x.rescaled
        steps.append(("dropout", round(x.rate, 9)))
      case model.Activation() as x:
        steps.append((x.function,))
  return steps


@pytest.mark.parametrize("run", WITH_LAYERS)
def test_net_is_that_of_the_original_file(run):
  expected = steps_of_the_file(run)
  if run == "146-2011":  # 10921 units on one device and 10922 on the other.
    assert expected[-1][1] == 2 * 10921
    expected[-1] = ("fc", 21843, *expected[-1][2:])
  assert steps_of_the_config(run) == expected


@pytest.mark.parametrize("run", [x for x in WITH_LAYERS if x != "146-2011"])
def test_what_all_runs_share_is_that_of_the_files(run):
  config = load(run)
  values = RUNS[run]["params_at_the_end"].values()
  both = [x for each in values if "wc" in each for x in (each["wc"],)]
  decays = {y for x in both for y in (x if isinstance(x, list) else [x])}
  assert decays == {config.weight_decay}
  assert not config.weight_decay_of_biases  # layer.cu gives biases 0.
  momenta = {each["momB"] for each in values if "momB" in each}
  assert momenta == {config.momentum}
  # convnet.py's minibatch, and convdata.py's crop_chunk, mean and divisor.
  assert (config.batch_size, config.images_per_view) == (128, 32)
  assert (config.mean_crop, config.colour_noise_divisor) == ("centre", 1.1)


STEPS_PER_EPOCH = 40


def rates_of_the_config(config):
  """Returns the rate of each array in the middle of each epoch of the log."""
  total = round(config.total_epochs * STEPS_PER_EPOCH)
  tx, _ = optimizer.from_config(
    config, STEPS_PER_EPOCH * config.batch_size, total
  )
  net = networks.from_config(config)
  params = {"features": {}, "classifier": {}}
  for half in params:
    for row in networks.rows(net):
      layer = row.layer
      is_dense = isinstance(layer, model.Dense)
      if row.parameters and is_dense == (half == "classifier"):
        arrays = ["kernel", "bias"][: 1 + (layer.bias is not None)]
        params[half][layer.name] = dict.fromkeys(arrays, np.zeros(1))
  grads = optax.tree.full_like(params, 1.0)
  update = jax.jit(
    lambda step: tx.update(grads, tx.init(params), params, step=step, drops=0)
  )
  rates = {}
  for epoch in range(1, int(config.total_epochs) + 1):
    step = (epoch - 1) * STEPS_PER_EPOCH + STEPS_PER_EPOCH // 2
    for path, move in jax.tree.leaves_with_path(update(step)[0]):
      rates.setdefault((path[-2].key, path[-1].key), []).append(-float(move[0]))
  return rates


def logged_rates(run):
  """Returns the weights' rate by layer and epoch, noise's end and run's end."""
  conv1, conv2, rest = [], [], []
  rates = {"conv1": 0.01, "conv2": 0.01, "": 0.01}
  events = {e["epoch"]: e["set"] for e in RUNS[run]["events"]}
  noise, epoch = None, 1
  while events.get(epoch) != "killed":
    for change in events.get(epoch, "").replace(", elsewhere", ";").split(";"):
      *what, value = change.split() or [""]
      if what[:2] == ["colour", "noise"]:
        noise = epoch
      elif what and what[0].startswith("conv"):
        for name in ("conv1", "conv2"):
          if name in change:
            rates[name] = float(value)
      elif value:
        # All layers that are not lower already.
        now = float(value)
        rates = {x: min(rate, now) for x, rate in rates.items()}
    conv1.append(rates["conv1"])
    conv2.append(rates["conv2"])
    rest.append(rates[""])
    epoch += 1
  return {"conv1": conv1, "conv2": conv2, "": rest}, noise, epoch


@pytest.mark.parametrize("run", BY_HAND)
def test_rates_fell_in_the_epochs_of_the_log(run):
  config = load(run)
  weights, noise, end = logged_rates(run)
  assert config.total_epochs == end - 1  # The epoch that was broken off.
  assert config.colour_noise_epochs == (noise and noise - 1)
  last = RUNS[run]["params_at_the_end"]
  for (layer, array), found in rates_of_the_config(config).items():
    name = layer.removesuffix("_image")
    if array == "kernel":
      expected = weights.get(name, weights[""])
      np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=layer)
      continue
    # Its first rate, that at the end of the file, and one fall at most.
    (in_file,) = (
      last[key]["epsB"] for key in last if key in aliases(name, last)
    )
    assert found[0] == pytest.approx(0.02)
    assert found[-1] == pytest.approx(in_file)
    assert len(set(found)) <= 3


def aliases(name, params):
  """Returns the original's name of a layer of ours."""
  weighted = [key for key in params if "epsB" in params[key]]
  names = {key.removesuffix("a"): key for key in weighted}
  fc = [key for key in weighted if key.startswith("fc")]
  names |= dict(zip(("fc6", "fc7", "fc8", "fc9"), fc, strict=False))
  return {names[name]}


@pytest.mark.parametrize("run", BY_SCHEDULE)
def test_rates_follow_the_schedules_of_the_file(run):
  """A literal lr.cu: `dexp` takes the rate of the interval of the progress."""
  config = load(run)
  values = RUNS[run]["params_at_the_end"]["conv2a"]
  numbers = {
    key: [int(x) for x in values[key].replace("=", " ").replace(
      "[", " ").replace("]", " ").replace(",", " ").split() if x.isdigit()]
    for key in ("schedW", "schedB")
  }  # fmt: skip
  events = {e["set"]: e["epoch"] for e in RUNS[run]["events"]}
  frozen = events["conv1 weights 0"]
  assert config.colour_noise_epochs == events["colour noise 0"] - 1
  assert config.total_epochs == 90
  for (layer, array), found in rates_of_the_config(config).items():
    base, key = (0.02, "schedB") if array == "bias" else (0.01, "schedW")
    target, count = numbers[key][0], numbers[key][-1]
    for epoch, rate in enumerate(found, start=1):
      progress = (epoch - 0.5) / 90
      level = next(i for i in range(count) if progress <= (i + 1) / count)
      expected = base * target ** (-level / (count - 1))
      if layer == "conv1" and epoch >= frozen:
        expected = 0.0
      assert rate == pytest.approx(expected, rel=1e-5), (layer, array, epoch)


def test_fine_tuning_of_run_146_has_the_rates_of_its_log():
  """layer-params-146-2012-2011.cfg."""
  found = rates_of_the_config(load("146-2012-2011"))
  for (layer, array), rates in found.items():
    for epoch, rate in enumerate(rates, start=1):
      expected = 1e-3 if epoch < 22 else 1e-4 if epoch < 42 else 1e-5
      if layer == "fc8" and epoch < 9:
        expected = 0.01
      if layer == "conv1":
        expected = 1e-4 if epoch < 5 else 1e-5 if epoch < 7 else 0.0
      if array == "bias":
        expected = 0.022 if layer == "conv6" else 0.02
        if layer == "conv1" and epoch >= 7:
          expected = 0.0
      assert rate == pytest.approx(expected), (layer, array, epoch)
  config = load("146-2012-2011")
  assert (config.colour_noise_epochs, config.total_epochs) == (37, 53)


def test_new_last_layer_of_run_146_waits_for_batch_file_300():
  config = load("146-2012-2011")
  (start,) = (
    epoch
    for epoch, layer, rate in config.learning_rate_of_layers
    if (layer, rate) == ("fc8", 0.01)
  )
  assert start == pytest.approx(300 * 1024 / 1_281_167, abs=0.005)


@pytest.mark.parametrize(
  ("run", "base", "drawn", "until", "end"),
  [
    ("146-2009", "145", ["conv6", "fc6", "fc7", "fc8"], 2, 6),
    ("146-2011", "146-2009", ["fc6", "fc7", "fc8", "fc9"], 6, 8),
  ],
)
def test_pretraining_gives_drawn_layers_ten_times_the_rate(
  run, base, drawn, until, end
):
  config = load(run)
  assert list(config.reinit_layers) == drawn
  assert end - 1 < config.total_epochs < end
  for (layer, array), rates in rates_of_the_config(config).items():
    for epoch, rate in enumerate(rates, start=1):
      expected = 0.01 if layer in drawn and epoch < until else 0.001
      if array == "bias":
        expected = 0.002 if layer == "conv6" else 0.02
      assert rate == pytest.approx(expected), (layer, array, epoch)
  old, new = ({x: load(y).network[x] for x in load(y).network.layers}
              for y in (base, run))  # fmt: skip
  kept = set(old) - set(drawn)
  assert {x: old[x] for x in kept} == {x: new[x] for x in kept}
