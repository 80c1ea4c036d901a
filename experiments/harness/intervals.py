"""How sure a mean, a difference of paired nets, or a ratio is."""

import numpy as np
from scipy import stats

from alexnet_jax.tools.report import command as report

LEVEL = report.CONFIDENCE


def of_mean(values: np.ndarray) -> tuple[float, float, float]:
  """Returns mean, low and high of Student's interval over seeds.

  Args:
    values: float [S], one for each seed; of one alone the interval is endless.
  """
  mean, half = report.interval(values.tolist())
  half = np.inf if half is None else half
  return mean, mean - half, mean + half


def of_paired_difference(
  wrong: np.ndarray, wrong_base: np.ndarray
) -> tuple[float, float, float]:
  """Returns the difference of two error rates, and the interval's low and high.

  Another seed would have given another difference, and so would other images.
  The variances are those that a bootstrap of pairs of nets (with S - 1 for S)
  and one of images come to; what both of them count, the luck of one net with
  one image, is taken off the second. Each has its own quantile: Student's of
  the few seeds, the normal one of the many images. Few seeds may agree by luck:
  the interval is never narrower than that of the images alone.

  Args:
    wrong: bool [S, N], which of N images the net of each seed got wrong.
    wrong_base: bool [S, N], of the base arm, of the same seeds and images.
  """
  differences_SxN = wrong.astype(np.float64) - wrong_base
  seeds, images = differences_SxN.shape
  mean = float(differences_SxN.mean())
  if seeds < 2:
    return mean, -np.inf, np.inf
  of_seed = differences_SxN.mean(axis=1, keepdims=True)
  of_image = differences_SxN.mean(axis=0, keepdims=True)
  luck = differences_SxN - of_seed - of_image + mean
  by_seeds = of_seed.var(ddof=1) / seeds
  by_images = of_image.var(ddof=1) / images
  by_luck = (luck**2).sum() / ((seeds - 1) * (images - 1)) / (seeds * images)
  of_few = float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1))
  of_many = float(stats.norm.ppf((1 + LEVEL) / 2))
  both = of_few**2 * by_seeds + of_many**2 * max(by_images - by_luck, 0)
  half = max(both, of_many**2 * by_images) ** 0.5
  return mean, mean - half, mean + half


def of_ratio(
  numerators: np.ndarray, denominators: np.ndarray
) -> tuple[float, float, float]:
  """Returns the ratio of two geometric means over seeds, low and high.

  Welch's interval of the difference of logarithms: the arms share no seed's
  numbers but by name.

  Args:
    numerators: float [S], positive.
    denominators: float [T], positive.
  """
  logs = [np.log(numerators), np.log(denominators)]
  mean = float(logs[0].mean() - logs[1].mean())
  if min(map(len, logs)) < 2:
    return float(np.exp(mean)), 0.0, np.inf
  interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(LEVEL)
  return (
    float(np.exp(mean)), float(np.exp(interval.low)),
    float(np.exp(interval.high)),
  )  # fmt: skip


def verdict(low: float, high: float, sign: int) -> str:
  """Returns what an interval of a difference says of the original's sign."""
  if not sign:
    return "nothing to compare"
  if low <= 0 <= high:
    return "undecided"
  return "agrees" if (low > 0) == (sign > 0) else "disagrees"
