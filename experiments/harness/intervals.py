"""95 % intervals of a mean, of a difference of paired nets, and of a ratio."""

import numpy as np
from scipy import stats

LEVEL = 0.95


def of_mean(values: np.ndarray) -> tuple[float, float, float]:
  """Returns the mean, and low and high of its interval (Student's t).

  Args:
    values: float [S], one for each seed. One value has an infinite interval.
  """
  mean = float(values.mean())
  if len(values) < 2:
    return mean, -np.inf, np.inf
  error = stats.sem(values)
  low, high = stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
  return mean, float(low), float(high)


def of_paired_difference(
  wrong: np.ndarray, wrong_base: np.ndarray
) -> tuple[float, float, float]:
  """Returns the difference of two error rates, low and high.

  The interval is for other seeds and other images. It adds two variances: of
  the mean over seeds and of the mean over images. Both contain the noise of one
  net on one image, so the second is taken without it. The few seeds have
  Student's quantile, the many images the normal one. A few seeds may agree by
  chance, so the interval is at least as wide as that of the images alone.

  Args:
    wrong: bool [S, N], whether the net of each seed got each image wrong.
    wrong_base: bool [S, N], the same for the base arm's nets of these seeds.
  """
  differences_SxN = wrong.astype(np.float64) - wrong_base
  seeds, images = differences_SxN.shape
  mean = float(differences_SxN.mean())
  if seeds < 2:
    return mean, -np.inf, np.inf
  seed_means = differences_SxN.mean(axis=1, keepdims=True)
  image_means = differences_SxN.mean(axis=0, keepdims=True)
  noise_SxN = differences_SxN - seed_means - image_means + mean
  by_seeds = seed_means.var(ddof=1) / seeds
  by_images = image_means.var(ddof=1) / images
  by_noise = (noise_SxN**2).sum() / ((seeds - 1) * (images - 1))
  by_noise /= seeds * images
  student = float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1))
  normal = float(stats.norm.ppf((1 + LEVEL) / 2))
  both = student**2 * by_seeds + normal**2 * max(by_images - by_noise, 0)
  half = max(both, normal**2 * by_images) ** 0.5
  return mean, mean - half, mean + half


def of_ratio(
  numerators: np.ndarray, denominators: np.ndarray
) -> tuple[float, float, float]:
  """Returns the ratio of two geometric means, low and high.

  Welch's interval for the difference of the logarithms; the nets of the two
  arms are not paired.

  Args:
    numerators: float [S], positive, one for each seed.
    denominators: float [T], positive.
  """
  logs = [np.log(numerators), np.log(denominators)]
  ratio = float(np.exp(logs[0].mean() - logs[1].mean()))
  if min(map(len, logs)) < 2:
    return ratio, 0.0, np.inf
  interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(LEVEL)
  return ratio, float(np.exp(interval.low)), float(np.exp(interval.high))


def verdict(low: float, high: float, sign: int) -> str:
  """Returns whether the interval of a difference agrees with the original.

  Args:
    low: end of the interval.
    high: end of the interval.
    sign: of the original's difference; 0 if there is none.
  """
  if not sign:
    return "nothing to compare"
  if low <= 0 <= high:
    return "undecided"
  return "agrees" if (low > 0) == (sign > 0) else "disagrees"
