"""The paper as printed (Krizhevsky, Sutskever, Hinton, NIPS 2012).

Original run: 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012 validation,
averaged over ten views. Every other config starts from this one, so it lists
all fields; their ranges are in alexnet_jax/runs/config_files.py. Numbers in
comments are sections of the paper.

  alexnet train --config=alexnet --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict, config_dict


def conv(
  filters: int,
  kernel: int,
  *,
  stride: int = 1,
  padding: int = 0,
  ceil_mode: bool = True,
  sees_all_towers: bool = False,
  sigma: float = 0.01,
  bias: float | None = 0.0,
  then: tuple[str, ...] = ("activation",),
) -> ConfigDict:
  """Returns a row of the net: a convolution and what follows it.

  Args:
    filters: in all towers together.
    kernel: side of a filter in pixels.
    stride: in pixels.
    padding: zeros on each side, in pixels.
    ceil_mode: whether the last windows may reach past the right and bottom
      edges.
    sees_all_towers: whether a filter sees the channels of all towers, or only
      those of its own tower; the first layer sees the whole image.
    sigma: standard deviation of the initial weights.
    bias: initial bias; None for no bias.
    then: what follows, in order: activation, lrn, map_norm, contrast_norm,
      max_pool, max_pool_floor (its windows stay inside the edge),
      average_pool, dropout, blur.
  """
  return ConfigDict(locals())


def dense(
  units: Any,
  *,
  sees_all_towers: bool = True,
  sigma: float = 0.01,
  bias: float = 0.0,
  then: tuple[str, ...] = ("activation", "dropout"),
) -> ConfigDict:
  """Returns a row of the net: a fully connected layer and what follows it.

  Args:
    units: in all towers together.
    sees_all_towers: as in `conv`.
    sigma: as in `conv`.
    bias: as in `conv`.
    then: as in `conv`.
  """
  return ConfigDict(locals())


def add(*branches: tuple[str, ...], then: tuple[str, ...] = ()) -> ConfigDict:
  """Returns a row of the net: the sum of branches, and what follows it.

  Args:
    branches: names of rows, in order; all branches have the input of this row.
    then: as in `conv`.
  """
  return ConfigDict(locals())


def words(*then: str) -> ConfigDict:
  """Returns a row of the net without weights: `then` as in `conv`."""
  return ConfigDict(locals())


def get_config() -> ConfigDict:
  """Returns the base config."""
  config: Any = ConfigDict()

  # The net (3.5), row by row; its biases and weights (5).
  config.num_classes = 1000
  config.compute_dtype = "float32"  # or bfloat16
  # Of products, as jax.default_matmul_precision: default is the platform's;
  # highest makes platforms agree.
  config.matmul_precision = "default"
  net = config.network = ConfigDict()
  net.layers = (
    "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
  )  # fmt: skip
  normed = ("activation", "lrn", "max_pool")
  pooled = ("activation", "max_pool")
  net.conv1 = conv(96, 11, stride=4, then=normed)
  net.conv2 = conv(256, 5, padding=2, bias=1.0, then=normed)
  net.conv3 = conv(384, 3, padding=1, sees_all_towers=True)
  net.conv4 = conv(384, 3, padding=1, bias=1.0)
  net.conv5 = conv(256, 3, padding=1, bias=1.0, then=pooled)
  net.fc6 = dense(4096, bias=1.0)
  net.fc7 = dense(4096, bias=1.0)
  net.fc8 = dense(config.get_ref("num_classes"), then=())
  net.initialization = "sigma"  # of each row; or he, for nets of other widths
  net.towers = 2  # 3.2
  net.activation = "relu"  # 3.1; a name in ops.ACTIVATIONS
  net.pool_window = 3  # 3.4: they overlap
  net.pool_stride = 2
  net.lrn = ConfigDict()  # 3.3
  net.lrn.k = 2.0
  net.lrn.alpha = 1e-4  # weighs the sum of squares, not their mean
  net.lrn.beta = 0.75
  net.lrn.window = 5
  net.lrn.across_towers = False
  # Not in the paper: map_norm (layers-145.cfg), contrast_norm, which has the
  # same fields, and blur (layers-131.cfg).
  net.map_norm = ConfigDict()
  net.map_norm.k = 1.0
  net.map_norm.alpha = 1e-3 / 25
  net.map_norm.beta = 0.75
  net.map_norm.window = 5
  net.blur = ConfigDict()
  net.blur.sigma = 4.0
  net.blur.window = 9
  net.blur.stride = 4
  net.dropout_rate = 0.5  # 4.2
  net.dropout_rate_of_layers = ()  # exceptions: (layer, rate), ...
  net.dropout_rescaled = False  # halved at test instead

  # The data: a directory that `alexnet prepare` wrote, and its splits as TFDS
  # writes them ("" for none). ImageNet's test labels are secret, so test on its
  # validation split: --config.test_split=validation.
  config.data_dir = "data/imagenet"
  config.generate_shapes = False  # draw a missing data_dir named shapes
  config.train_split = "train"
  config.validation_split = "validation"
  config.test_split = "test"
  config.image_size_px = 256  # 2
  config.reader_threads = 2
  # Keep the train split on the devices if it needs at most this fraction of
  # their memory.
  config.device_cache_fraction = 0.2
  # Run at most so many steps as one program then (on the CPU always one).
  config.steps_per_call = 16

  # Views (4.1).
  config.crop_size_px = config.get_ref("image_size_px") * 7 // 8  # 224 of 256
  config.random_crop = True
  config.mirror = True
  config.images_per_view = 1  # neighbours that share a crop and a mirroring
  # In standard deviations along each axis (convdata.py; the paper prints the
  # eigenvalue), for so many epochs; noisy images are divided by the divisor.
  config.colour_noise = 0.1
  config.colour_noise_epochs = config_dict.placeholder(float)  # None: all
  config.colour_noise_divisor = 1.0
  # The part of the mean image that is subtracted from a crop: at its "own
  # place" (paper 2), or always the one at the "centre" (convdata.py).
  config.mean_crop = "own place"
  # Of R, G and B: the net sees (pixels - mean) * scale.
  config.input_scale = (1.0, 1.0, 1.0)
  config.test_views = 10  # corners, centre and mirrors; or 1, the centre

  # Learning (5): v <- m v - rate (decay w + gradient), w <- w + v.
  config.init_from = ""  # start from the weights of the run in this workdir
  # Whether to take that run's net, image size, crop and mean image too, and the
  # layers to draw anew all the same (with init_inherits the last, by default).
  config.init_inherits = False
  config.reinit_layers = ()
  config.batch_size = 128
  config.optimizer = "sgd"  # or lars, for large batches
  config.lars_trust = 0.001  # lars: norm of a step / norm of the weights
  config.momentum = 0.9
  config.weight_decay = 0.0005
  config.weight_decay_of_biases = True
  config.weight_decay_of_layers = ()  # exceptions: (layer, decay), ...
  config.learning_rate = 0.01
  config.learning_rate_of_biases = 1.0  # times the weights' first rate
  config.learning_rate_of_reinit_layers = 1.0  # times the others' rate
  # Exceptions: (from this epoch, layer or layer/bias, rate), ...; these rates
  # are neither scaled nor warmed up; a layer of rate 0 is frozen.
  config.learning_rate_of_layers = ()
  # plateau: the rate drops when the validation error stops improving, at most
  # plateau_drops times, then the run ends; the paper gives no patience.
  # epochs: it drops after each of learning_rate_drop_epochs. linear, exp, dexp:
  # it falls to the first rate / target_factor over the run; dexp in steps.
  config.schedule = "plateau"
  config.learning_rate_drop_factor = 0.1  # plateau, epochs
  config.plateau_drops = 3
  config.plateau_patience = 5  # evaluations without a lower error
  config.learning_rate_drop_epochs = ()
  config.target_factor = 250.0
  config.dexp_rates = 4
  # weights: as the weights' rate; constant; or dexp.
  config.schedule_of_biases = "weights"
  config.target_factor_of_biases = 10.0
  config.dexp_rates_of_biases = 2
  # For large batches: the rate grows with batch_size / batch_scaling_base, and
  # rises from 0 during the warm-up (not that of biases whose schedule is
  # constant or dexp).
  config.batch_scaling = "none"  # or linear, sqrt
  config.batch_scaling_base = 128
  config.warmup_epochs = 0.0
  config.total_epochs = 90.0
  config.total_steps = config_dict.placeholder(int)  # instead of total_epochs
  # Ends the run, or a member of an ensemble, after an evaluate_every_epochs in
  # which the mean training error was below this; 0: never.
  config.stop_at_train_error = 0.0
  config.seed = 0

  # Where (the numbers do not depend on it; see parallel/layouts.py). data: each
  # device has the whole net; towers: one tower each (3.2); owt_a, owt_b, owt_c:
  # One Weird Trick; fsdp: as data, but the fc weights are stored in shards.
  config.layout = "data"
  # On a GPU, use only programs that give the same bits each time, so that a run
  # which is resumed ends like one that was not stopped. CPU and TPU always do.
  config.deterministic = False
  config.microbatches = 1  # a step takes its batch in so many parts
  # Update the fc layers after so many examples, several times a step (One Weird
  # Trick, section 4). None: the whole batch.
  config.fc_batch_size = config_dict.placeholder(int)
  config.ensemble = 1  # nets trained side by side: seed, seed + 1, ...

  # What is written down, and when.
  config.log_every_steps = 100
  config.evaluate_every_epochs = 1.0
  config.checkpoint_every_steps = 2000
  config.checkpoint_every_minutes = 10.0
  config.checkpoints_to_keep = 3  # the newest; the best is kept too

  # When to stop with an error.
  config.input_timeout_s = 600.0  # after so long without a batch of images
  # After so many steps a loss within 1 % of ln(num_classes) ends the run; 0:
  # never.
  config.check_learning_after_steps = 20_000
  # Leave out at most so many steps whose loss or gradients are not finite.
  config.skip_nonfinite_steps = 0
  return config.lock()
