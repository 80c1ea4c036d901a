"""How sure a difference is: paired bootstraps, and means over seeds."""

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1000


def of_mean(values: np.ndarray) -> tuple[float, float, float]:
  """Returns mean, low and high of Student's interval over seeds.

  Args:
    values: float [S], one for each seed; of one alone the interval is endless.
  """
  mean, count = float(np.mean(values)), len(values)
  if count < 2:
    return mean, -np.inf, np.inf
  half = _quantile(count) * float(np.std(values, ddof=1)) / count**0.5
  return mean, mean - half, mean + half


def of_paired_difference(
  wrong: np.ndarray, wrong_base: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
  """Returns the difference of two error rates, and the interval's low and high.

  Pairs of nets of one seed, and images, are both drawn with replacement, as
  another seed and another image would have given another difference. The
  bootstrap gives the standard error; so few seeds tell little of their spread,
  so deviations of seeds are enlarged by sqrt(S / (S - 1)), which makes their
  variance unbiased, and the quantile is Student's with S - 1 degrees.

  Args:
    wrong: bool [S, N], which of N images the net of each seed got wrong.
    wrong_base: bool [S, N], of the base arm, of the same seeds and images.
    seed: of the bootstrap.
  """
  differences_SxN = wrong.astype(np.float64) - wrong_base
  seeds, images = differences_SxN.shape
  mean = float(differences_SxN.mean())
  if seeds < 2:
    return mean, -np.inf, np.inf
  of_seed = differences_SxN.mean(axis=1, keepdims=True)
  widened = differences_SxN + (of_seed - mean) * (
    (seeds / (seeds - 1)) ** 0.5 - 1
  )
  rng = np.random.default_rng(seed)
  draws = [
    rng.multinomial(seeds, np.full(seeds, 1 / seeds))
    @ widened
    @ rng.multinomial(images, np.full(images, 1 / images))
    / (seeds * images)
    for _ in range(RESAMPLES)
  ]
  half = _quantile(seeds) * float(np.std(draws))
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


def _quantile(count: int) -> float:
  return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
