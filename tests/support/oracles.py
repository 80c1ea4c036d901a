"""Literal NumPy float64 oracle of AlexNet (Krizhevsky et al., NIPS 2012).

Written from the paper and facts about the original program alone, sharing
nothing with the package under test. Images are NHWC, convolution kernels HWIO,
dense weights (in, out). Conv (unless told not to) and pool use ceil geometry:
out = 1 + ceil((in + 2 pad - window) / stride).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Layer = Mapping[str, ArrayLike]
Params = Mapping[str, Mapping[str, Layer]]


def conv(
  x: ArrayLike,
  kernel: ArrayLike,
  bias: ArrayLike,
  stride: int,
  padding: int,
  towers: int,
  ceil_mode: bool = True,
) -> Floats:
  """Convolution with zeros outside the image (paper 3.5).

  Args:
    x: (B, H, W, C) images.
    kernel: (k, k, C / towers, O); tower t sees input channel block t and makes
      output channel block t.
    bias: (O,).
    stride: step of the window.
    padding: zero pixels on each side.
    towers: number of channel blocks that do not see each other.
    ceil_mode: whether the number of steps is rounded up (the original
      program), so that the last window may read past the edge, or down.

  Returns:
    (B, H', W', O) with H' = 1 + ceil((H + 2 padding - k) / stride), or floor.
  """
  x = np.asarray(x, np.float64)
  kernel = np.asarray(kernel, np.float64)
  batch, height, width, channels = x.shape
  size, _, _, filters = kernel.shape
  seen, made = channels // towers, filters // towers
  if kernel.shape[1:3] != (size, seen) or seen * towers != channels:
    raise ValueError(f"{kernel.shape=} does not fit {x.shape=}, {towers=}")
  if made * towers != filters:
    raise ValueError(f"{filters=} are not divisible by {towers=}")
  whole = np.ceil if ceil_mode else np.floor
  rows = 1 + int(whole((height + 2 * padding - size) / stride))
  cols = 1 + int(whole((width + 2 * padding - size) / stride))
  out = np.zeros((batch, rows, cols, filters))
  for t in range(towers):
    inputs = x[:, :, :, t * seen : (t + 1) * seen]
    weights = kernel[:, :, :, t * made : (t + 1) * made]
    for row in range(rows):
      for col in range(cols):
        total = np.zeros((batch, made))
        for i in range(size):
          for j in range(size):
            y = row * stride - padding + i
            z = col * stride - padding + j
            if 0 <= y < height and 0 <= z < width:
              total += inputs[:, y, z, :] @ weights[i, j]
        out[:, row, col, t * made : (t + 1) * made] = total
  return out + np.asarray(bias, np.float64)


def max_pool(x: ArrayLike, window: int, stride: int) -> Floats:
  """Largest value per window, clipped at the right and bottom (paper 3.4).

  Args:
    x: (B, H, W, C).
    window: side of the window.
    stride: step of the window.

  Returns:
    (B, H', W', C) with H' = 1 + ceil((H - window) / stride).
  """
  x = np.asarray(x, np.float64)
  batch, height, width, channels = x.shape
  rows = 1 + int(np.ceil((height - window) / stride))
  cols = 1 + int(np.ceil((width - window) / stride))
  out = np.zeros((batch, rows, cols, channels))
  for row in range(rows):
    for col in range(cols):
      top, left = row * stride, col * stride
      bottom, right = min(top + window, height), min(left + window, width)
      patch = x[:, top:bottom, left:right, :]
      out[:, row, col, :] = patch.max(axis=(1, 2))
  return out


def average_pool(x: ArrayLike, window: int, stride: int) -> Floats:
  """Mean of the pixels really in each window (layers-19pct.cfg).

  Args:
    x: (B, H, W, C).
    window: side of the window.
    stride: step of the window.

  Returns:
    (B, H', W', C) with H' = 1 + ceil((H - window) / stride).
  """
  x = np.asarray(x, np.float64)
  batch, height, width, channels = x.shape
  rows = 1 + int(np.ceil((height - window) / stride))
  cols = 1 + int(np.ceil((width - window) / stride))
  out = np.zeros((batch, rows, cols, channels))
  for row in range(rows):
    for col in range(cols):
      top, left = row * stride, col * stride
      bottom, right = min(top + window, height), min(left + window, width)
      pixels = (bottom - top) * (right - left)
      patch = x[:, top:bottom, left:right, :]
      out[:, row, col, :] = patch.sum(axis=(1, 2)) / pixels
  return out


def local_response_norm(
  x: ArrayLike,
  towers: int,
  k: float = 2.0,
  alpha: float = 1e-4,
  beta: float = 0.75,
  n: int = 5,
) -> Floats:
  """Response normalization across the channels of one tower (paper 3.3).

  b_c = a_c / (k + alpha * sum of a_d^2 over d in c - n/2 .. c + n/2)^beta, the
  window clipped at the ends of the tower. alpha is not divided by n.

  Args:
    x: (..., C).
    towers: number of channel blocks that do not see each other.
    k: constant of the denominator.
    alpha: factor of the sum of squares.
    beta: power of the denominator.
    n: channels in a whole window, odd.

  Returns:
    The shape of x.
  """
  x = np.asarray(x, np.float64)
  size = x.shape[-1] // towers
  if size * towers != x.shape[-1]:
    raise ValueError(f"{x.shape[-1]} channels do not make {towers=}")
  out = np.zeros(x.shape)
  for t in range(towers):
    for c in range(t * size, (t + 1) * size):
      first = max(c - n // 2, t * size)
      last = min(c + n // 2, (t + 1) * size - 1)
      squares = np.zeros(x.shape[:-1])
      for d in range(first, last + 1):
        squares += x[..., d] ** 2
      out[..., c] = x[..., c] / (k + alpha * squares) ** beta
  return out


def map_norm(
  x_BxHxWxC: ArrayLike, window: int, k: float, alpha: float, beta: float
) -> Floats:
  """Response normalization over the pixels of one map (layers-145.cfg).

  b = a / (k + alpha * sum of a^2 over window x window pixels centred on the
  pixel, in the same channel)^beta, the window clipped at the edges of the map.
  alpha is not divided by the size of the window.

  Args:
    x_BxHxWxC: (B, H, W, C).
    window: side of a whole window, odd.
    k: constant of the denominator.
    alpha: factor of the sum of squares.
    beta: power of the denominator.

  Returns:
    (B, H, W, C).
  """
  x_BxHxWxC = np.asarray(x_BxHxWxC, np.float64)
  batch, height, width, channels = x_BxHxWxC.shape
  if window % 2 != 1:
    raise ValueError(f"{window=} has no central pixel")
  reach = window // 2
  out = np.zeros((batch, height, width, channels))
  for row in range(height):
    for col in range(width):
      squares_BxC = np.zeros((batch, channels))
      for y in range(row - reach, row + reach + 1):
        for z in range(col - reach, col + reach + 1):
          if 0 <= y < height and 0 <= z < width:
            squares_BxC += x_BxHxWxC[:, y, z, :] ** 2
      denominator_BxC = (k + alpha * squares_BxC) ** beta
      out[:, row, col, :] = x_BxHxWxC[:, row, col, :] / denominator_BxC
  return out


def contrast_norm(
  x_BxHxWxC: ArrayLike, window: int, k: float, alpha: float, beta: float
) -> Floats:
  """Contrast normalization (cuda-convnet's `type=cnorm`).

  b = a / (k + alpha * sum of (a - m)^2 over window x window pixels)^beta, where
  the mean m at a pixel is that of the window around it. Windows are clipped at
  the edges of the map; a mean counts the pixels that are left.

  Returns:
    (B, H, W, C).
  """
  x = np.asarray(x_BxHxWxC, np.float64)
  _, height, width, _ = x.shape
  reach = window // 2

  def around(row, col):
    for y in range(max(row - reach, 0), min(row + reach + 1, height)):
      for z in range(max(col - reach, 0), min(col + reach + 1, width)):
        yield y, z

  deviations, out = np.zeros(x.shape), np.zeros(x.shape)
  for row in range(height):
    for col in range(width):
      seen = [x[:, y, z, :] for y, z in around(row, col)]
      deviations[:, row, col, :] = x[:, row, col, :] - sum(seen) / len(seen)
  for row in range(height):
    for col in range(width):
      squares = sum(deviations[:, y, z, :] ** 2 for y, z in around(row, col))
      out[:, row, col, :] = x[:, row, col, :] / (k + alpha * squares) ** beta
  return out


def blurred_samples(
  x_BxHxWxC: ArrayLike, sigma: float, window: int, stride: int
) -> Floats:
  """A Gaussian blur of rows and then of columns, of which some pixels stay.

  The weights of a window add up to 1; pixels beyond the edges are 0. The pixels
  0, stride, 2 stride ... of each axis stay (cuda-convnet's `type=blur` and
  `type=nailbed`).

  Returns:
    (B, ceil(H / stride), ceil(W / stride), C).
  """
  x = np.asarray(x_BxHxWxC, np.float64)
  weights = [
    np.exp(-((window // 2 - i) ** 2) / (2 * sigma**2)) for i in range(window)
  ]
  weights = [weight / sum(weights) for weight in weights]
  for axis in (1, 2):
    blurred = np.zeros(x.shape)
    for place in range(x.shape[axis]):
      for i, weight in enumerate(weights):
        other = place + i - window // 2
        if 0 <= other < x.shape[axis]:
          into = np.moveaxis(blurred, axis, 0)
          into[place] += weight * np.moveaxis(x, axis, 0)[other]
    x = blurred
  return x[:, ::stride, ::stride]


def _relu(x: Floats) -> Floats:
  return np.maximum(x, 0.0)


def _dense(x: Floats, layer: Layer) -> Floats:
  weights = np.asarray(layer["kernel"], np.float64)
  return x @ weights + np.asarray(layer["bias"], np.float64)


def _conv3_to_pool5(x: Floats, convs: Mapping[str, Layer]) -> Floats:
  x = _relu(conv(x, **convs["conv3"], stride=1, padding=1, towers=1))
  x = _relu(conv(x, **convs["conv4"], stride=1, padding=1, towers=2))
  x = _relu(conv(x, **convs["conv5"], stride=1, padding=1, towers=2))
  return max_pool(x, window=3, stride=2)


def _classifier(x: Floats, dense: Mapping[str, Layer], scale: float) -> Floats:
  x = x.reshape(x.shape[0], -1)  # (B, H W C), channels fastest.
  x = _relu(_dense(x, dense["fc6"])) * scale
  x = _relu(_dense(x, dense["fc7"])) * scale
  return _dense(x, dense["fc8"])


def alexnet_logits(
  params: Params, images_BxHxWx3: ArrayLike, fc_scale: float = 0.5
) -> Floats:
  """The two-tower net of paper 3.5 at test time.

  Args:
    params: {"features": conv1..conv5, "classifier": fc6..fc8}, each layer
      {"kernel", "bias"}; all widths are read from the arrays.
    images_BxHxWx3: (B, H, W, 3), the mean already subtracted.
    fc_scale: factor of the fc6 and fc7 activities (paper 4.2: 0.5 at test).

  Returns:
    (B, classes).
  """
  convs, dense = params["features"], params["classifier"]

  x = conv(images_BxHxWx3, **convs["conv1"], stride=4, padding=0, towers=1)
  x = _relu(x)
  x = local_response_norm(x, towers=2)
  x = max_pool(x, window=3, stride=2)

  x = conv(x, **convs["conv2"], stride=1, padding=2, towers=2)
  x = _relu(x)
  x = local_response_norm(x, towers=2)
  x = max_pool(x, window=3, stride=2)

  x = _conv3_to_pool5(x, convs)

  return _classifier(x, dense, fc_scale)


def run145_logits(
  params: Params, images: ArrayLike, conv4_keep: float = 1.0
) -> Floats:
  """The two-tower net of run 145 at test time (layers-145.cfg).

  Args:
    params: as for alexnet_logits.
    images: (B, H, W, 3), the mean already subtracted.
    conv4_keep: factor of conv4's activities (layers-177.cfg: 0.8).

  Returns:
    (B, classes).
  """
  convs, dense = params["features"], params["classifier"]

  x = conv(images, **convs["conv1"], stride=4, padding=0, towers=1)
  x = local_response_norm(x, towers=2, k=2.0, alpha=1e-4 / 5, beta=0.75, n=5)
  x = max_pool(x, window=3, stride=2)
  x = _relu(x)

  x = conv(x, **convs["conv2"], stride=1, padding=2, towers=2)
  x = _relu(x)
  x = local_response_norm(x, towers=2, k=2.0, alpha=1e-4 / 5, beta=0.75, n=5)
  x = map_norm(x, window=5, k=1.0, alpha=1e-3 / 25, beta=0.75)
  x = max_pool(x, window=3, stride=2)

  x = _relu(conv(x, **convs["conv3"], stride=1, padding=1, towers=1))
  x = _relu(conv(x, **convs["conv4"], stride=1, padding=1, towers=2))
  x = x * conv4_keep
  x = conv(x, **convs["conv5"], stride=1, padding=1, towers=2)
  x = max_pool(x, window=3, stride=2)
  x = _relu(x)

  return _classifier(x, dense, 0.5)


def run131_logits(params: Params, images: ArrayLike) -> Floats:
  """The two-tower net of run 131 at test time (layers-131.cfg).

  Args:
    params: as for alexnet_logits, and the kernel of `conv2_image`.
    images: (B, H, W, 3), the mean already subtracted.

  Returns:
    (B, classes).
  """
  convs, dense = params["features"], params["classifier"]
  norm = {"towers": 2, "k": 1.0, "alpha": 1e-4 / 5, "beta": 0.75, "n": 5}

  x = conv(images, **convs["conv1"], stride=4, padding=0, towers=1)
  x = local_response_norm(x, **norm)
  x = _relu(max_pool(x, window=3, stride=2))

  x = conv(x, **convs["conv2"], stride=1, padding=2, towers=2)
  small = blurred_samples(images, sigma=4.0, window=9, stride=4)
  kernel = convs["conv2_image"]["kernel"]
  x += conv(small, kernel, 0.0, stride=2, padding=0, towers=1)
  x = local_response_norm(_relu(x), **norm)
  x = contrast_norm(x, window=5, k=1.0, alpha=1e-3 / 25, beta=0.75)
  x = max_pool(x, window=3, stride=2)

  x = _relu(conv(x, **convs["conv3"], stride=1, padding=1, towers=1))
  x = _relu(conv(x, **convs["conv4"], stride=1, padding=1, towers=2))
  x = conv(x, **convs["conv5"], stride=1, padding=1, towers=2)
  x = _relu(max_pool(x, window=3, stride=2))

  return _classifier(x, dense, 0.5)


def caffenet_logits(params: Params, images: ArrayLike) -> Floats:
  """Caffe's CaffeNet at test time: pool before LRN, LRN across both groups.

  Caffe rounds the steps of a convolution down and those of a pool up, divides
  the LRN's alpha by its window, and rescales dropout in training, so that
  nothing is halved here.

  Args:
    params: as for alexnet_logits.
    images: (B, H, W, 3), the mean already subtracted.

  Returns:
    (B, classes).
  """
  convs, dense = params["features"], params["classifier"]

  x = conv(
    images, **convs["conv1"], stride=4, padding=0, towers=1, ceil_mode=False
  )
  x = _relu(x)
  x = max_pool(x, window=3, stride=2)
  x = local_response_norm(x, towers=1, k=1.0, alpha=1e-4 / 5, beta=0.75, n=5)

  x = conv(x, **convs["conv2"], stride=1, padding=2, towers=2)
  x = _relu(x)
  x = max_pool(x, window=3, stride=2)
  x = local_response_norm(x, towers=1, k=1.0, alpha=1e-4 / 5, beta=0.75, n=5)

  x = _conv3_to_pool5(x, convs)

  return _classifier(x, dense, 1.0)


def ten_views(image_SxSx3: ArrayLike, crop: int) -> list[Floats]:
  """The corner and central crops and their mirrors (paper 4.1).

  Args:
    image_SxSx3: (S, S, 3).
    crop: side of a crop.

  Returns:
    Ten (crop, crop, 3): top left, top right, bottom left, bottom right and
    centre, then the left-right mirrors of those five in the same order.
  """
  image_SxSx3 = np.asarray(image_SxSx3, np.float64)
  last = image_SxSx3.shape[0] - crop
  middle = last // 2
  corners = [(0, 0), (0, last), (last, 0), (last, last), (middle, middle)]
  views = []
  for top, left in corners:
    views.append(image_SxSx3[top : top + crop, left : left + crop, :])
  for view in views[:5]:
    mirror = np.zeros((crop, crop, 3))
    for col in range(crop):
      mirror[:, col, :] = view[:, crop - 1 - col, :]
    views.append(mirror)
  return views


def average_softmax(
  logits_list: Sequence[ArrayLike], weights: Sequence[float]
) -> Floats:
  """Weighted mean of the softmaxes of several views or nets (paper 4.1).

  Args:
    logits_list: each (B, K).
    weights: one per entry of logits_list; only their ratios count.

  Returns:
    (B, K) probabilities.
  """
  total = sum(float(weight) for weight in weights)
  mean_BxK = np.zeros(np.shape(logits_list[0]))
  for logits, weight in zip(logits_list, weights, strict=True):
    for b, row in enumerate(np.asarray(logits, np.float64)):
      powers = np.exp(row - row.max())
      mean_BxK[b] += weight / total * powers / powers.sum()
  return mean_BxK


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
  """Minus the log softmax of the label.

  Args:
    logits: (B, C).
    labels: (B,) class indices.

  Returns:
    (B,) losses.
  """
  logits = np.asarray(logits, np.float64)
  losses = []
  for row, label in zip(logits, np.asarray(labels), strict=True):
    shifted = row - row.max()
    losses.append(np.log(np.exp(shifted).sum()) - shifted[label])
  return np.array(losses, np.float64)


def top_k_errors(
  logits: ArrayLike, labels: ArrayLike, k: int
) -> NDArray[np.bool_]:
  """Whether the label is not among the k largest logits (paper 2).

  Args:
    logits: (B, C).
    labels: (B,) class indices.
    k: number of guesses; ties are won by the lower class index.

  Returns:
    (B,) bool, True is an error.
  """
  logits = np.asarray(logits, np.float64)
  errors = []
  for row, label in zip(logits, np.asarray(labels), strict=True):
    ranked = sorted((-value, index) for index, value in enumerate(row))
    guesses = [index for _, index in ranked[:k]]
    errors.append(int(label) not in guesses)
  return np.array(errors, np.bool_)


def paper_update(
  w: ArrayLike,
  v: ArrayLike,
  grad: ArrayLike,
  rate: float,
  momentum: float = 0.9,
  decay: float = 0.0005,
) -> tuple[Floats, Floats]:
  """One step of paper 5, the rate inside the velocity.

  Args:
    w: weights, any shape.
    v: velocity, same shape.
    grad: gradient of the mean loss of the batch, same shape.
    rate: learning rate.
    momentum: factor of the old velocity.
    decay: weight decay.

  Returns:
    The new (w, v).
  """
  w = np.asarray(w, np.float64)
  v = np.asarray(v, np.float64)
  grad = np.asarray(grad, np.float64)
  new_v = momentum * v - decay * rate * w - rate * grad
  return w + new_v, new_v


def run_update(
  w: ArrayLike,
  v: ArrayLike,
  grad: ArrayLike,
  rate: float,
  momentum: float,
  decay: float,
) -> tuple[Floats, Floats]:
  """One step of the original program (weights.cu).

  That of the paper, but a rate of 0 leaves everything as it is: no momentum
  and no decay either.

  Args:
    w: weights, any shape.
    v: velocity, same shape.
    grad: gradient of the mean loss of the batch, same shape.
    rate: learning rate.
    momentum: factor of the old velocity.
    decay: weight decay.

  Returns:
    The new (w, v).
  """
  if rate == 0:
    return np.array(w, np.float64), np.array(v, np.float64)
  return paper_update(w, v, grad, rate, momentum, decay)


def lars_update(
  w: ArrayLike,
  v: ArrayLike,
  grad: ArrayLike,
  rate: float,
  momentum: float,
  decay: float,
  trust: float,
) -> tuple[Floats, Floats]:
  """One step of layer-wise adaptive rate scaling for one array.

  Args:
    w: weights, any shape.
    v: velocity, same shape.
    grad: gradient of the mean loss of the batch, same shape.
    rate: learning rate.
    momentum: factor of the old velocity.
    decay: weight decay, added to the gradient before its norm is taken.
    trust: factor of ||w|| / ||g||; the whole ratio is 1 if either norm is 0.

  Returns:
    The new (w, v).
  """
  w = np.asarray(w, np.float64)
  v = np.asarray(v, np.float64)
  g = np.asarray(grad, np.float64) + decay * w
  w_norm = np.sqrt((w**2).sum())
  g_norm = np.sqrt((g**2).sum())
  ratio = 1.0
  if w_norm != 0 and g_norm != 0:
    ratio = trust * w_norm / g_norm
  new_v = momentum * v - rate * ratio * g
  return w + new_v, new_v


def rate_linear(base: float, factor: float, p: float) -> float:
  """Learning rate falling linearly from base to base / factor (lr.cu).

  Args:
    base: rate at p = 0.
    factor: base over the rate at p = 1.
    p: progress of the run in [0, 1].

  Returns:
    The rate.
  """
  return base * (1 - p) + (base / factor) * p


def rate_exp(base: float, factor: float, p: float) -> float:
  """Learning rate falling exponentially from base to base / factor (lr.cu).

  Args:
    base: rate at p = 0.
    factor: base over the rate at p = 1.
    p: progress of the run in [0, 1].

  Returns:
    The rate.
  """
  return base * factor ** (-p)


def rate_dexp(base: float, factor: float, count: int, p: float) -> float:
  """Learning rate falling from base to base / factor in even steps (lr.cu).

  Args:
    base: the first rate.
    factor: base over the last rate.
    count: number of rates, at least 2; rate i holds for p in
      (i / count, (i + 1) / count], the first also at p = 0.
    p: progress of the run in [0, 1].

  Returns:
    The rate.
  """
  if count < 2:
    raise ValueError(f"{count=} makes no steps")
  for i in range(count):
    if p <= (i + 1) / count:
      return base * factor ** (-i / (count - 1))
  raise ValueError(f"{p=} is past the end of the run")


def plateau(
  errors: Sequence[float], patience: int, max_drops: int
) -> list[tuple[int, bool]]:
  """When the rate drops because validation stopped improving (paper 5).

  Args:
    errors: validation errors, one per evaluation; one is an improvement if it
      is strictly below all before it, in the whole run.
    patience: evaluations in a row without improvement that make a drop.
    max_drops: the run stops where the drop after this many would be.

  Returns:
    After each evaluation, the number of drops so far and whether the run has
    stopped.
  """
  best = np.inf
  stale, drops, stopped = 0, 0, False
  states = []
  for error in errors:
    if not stopped:
      if error < best:
        best = error
        stale = 0
      else:
        stale += 1
      if stale == patience:
        stale = 0
        if drops == max_drops:
          stopped = True
        else:
          drops += 1
    states.append((drops, stopped))
  return states


def colour_noise(
  image_HxWx3: ArrayLike,
  axes_3x3: ArrayLike,
  sds_3: ArrayLike,
  draws_3: ArrayLike,
  scale: float,
  divisor: float = 1.0,
) -> Floats:
  """Adds one RGB shift along the principal axes (paper 4.1, convdata.py).

  Args:
    image_HxWx3: (H, W, 3).
    axes_3x3: (3, 3), column i is unit principal axis i over R, G, B.
    sds_3: (3,) standard deviation along each axis.
    draws_3: (3,) standard normal draws, one per axis.
    scale: factor of the whole shift.
    divisor: what the shifted image is divided by (convdata.py: 1.1).

  Returns:
    (H, W, 3).
  """
  axes_3x3 = np.asarray(axes_3x3, np.float64)
  sds_3 = np.asarray(sds_3, np.float64)
  draws_3 = np.asarray(draws_3, np.float64)
  shift_3 = np.zeros(3)
  for i in range(3):
    shift_3 += axes_3x3[:, i] * sds_3[i] * draws_3[i] * scale
  return (np.asarray(image_HxWx3, np.float64) + shift_3) / divisor


def mean_and_pca(
  images: Sequence[NDArray[np.uint8]],
) -> tuple[Floats, Floats, Floats]:
  """Mean image and RGB principal axes of a training set (paper 2, 4.1).

  The covariance is the population's, over all pixels of all images, about the
  mean RGB. The sign of each axis is arbitrary.

  Args:
    images: each (S, S, 3) uint8.

  Returns:
    The mean image (S, S, 3), standard deviations (3,) ascending, and unit axes
    (3, 3) as columns in the same order.
  """
  mean_SxSx3 = np.zeros(images[0].shape)
  for image in images:
    mean_SxSx3 += image.astype(np.float64) / len(images)
  mean_3 = mean_SxSx3.mean(axis=(0, 1))
  covariance_3x3 = np.zeros((3, 3))
  pixels = 0
  for image in images:
    centred_Px3 = image.reshape(-1, 3).astype(np.float64) - mean_3
    covariance_3x3 += centred_Px3.T @ centred_Px3
    pixels += len(centred_Px3)
  variances_3, axes_3x3 = np.linalg.eigh(covariance_3x3 / pixels)
  # Rounding may leave a zero variance slightly negative.
  return mean_SxSx3, np.sqrt(np.maximum(variances_3, 0.0)), axes_3x3
