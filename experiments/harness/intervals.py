"""95 % intervals of a mean, of a difference of error rates, and of a ratio."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
_NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))

AGREES, DISAGREES = "agrees", "disagrees"
SMALLER, UNDECIDED = "smaller than the original", "undecided"
VERDICTS = (AGREES, SMALLER, UNDECIDED, DISAGREES)


def of_mean(values: np.ndarray) -> tuple[float, float, float]:
  """Returns the mean, and low and high of its interval (Student's t).

  Args:
    values: float [S], one for each seed. One value has an infinite interval.
  """
  mean = float(values.mean())
  if len(values) < 2:
    return mean, -np.inf, np.inf
  half = _student(len(values) - 1) * float(stats.sem(values))
  return mean, mean - half, mean + half


def _student(freedom: int) -> float:
  return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


@dataclasses.dataclass(frozen=True)
class Spread:
  """The variance over seeds within the arms of an experiment.

  Attributes:
    variance: pooled over all arms.
    freedom: its degrees of freedom.
    p_value: Bartlett's, of arms that differ in variance no more than by luck.
  """

  variance: float
  freedom: int
  p_value: float

  @property
  def is_common(self) -> bool:
    """Whether the pooled variance may stand for each arm's own."""
    return self.p_value >= 1 - LEVEL


def spread_of(rates: Sequence[np.ndarray]) -> Spread:
  """Returns the spread within arms of at least two nets.

  Bartlett's test is right for means over many images, which are nearly normal.
  Levene's is not for three nets of an arm: about medians it almost never finds
  a difference, about means it finds one in half of all equal arms.

  Args:
    rates: of at least two arms, float [S]: the error rate of each net.
  """
  freedom = sum(len(x) - 1 for x in rates)
  variance = sum(((x - x.mean()) ** 2).sum() for x in rates) / freedom
  with np.errstate(divide="ignore"):  # Two nets may have one rate.
    p_value = stats.bartlett(*rates).pvalue
  return Spread(float(variance), freedom, float(p_value))


def of_difference(
  wrong: np.ndarray, wrong_base: np.ndarray, spread: Spread | None = None
) -> tuple[float, float, float]:
  """Returns the difference of two arms' error rates, low and high.

  The nets are not paired, the images are. See `_over_images`.

  Args:
    wrong: bool [S, N], whether the net of each seed got each image wrong.
    wrong_base: bool [T, N], the same for all nets of the base.
    spread: stands for the variance over seeds of both arms; without it each has
      its own (Welch).
  """
  rates, base = wrong.mean(axis=1), wrong_base.mean(axis=1)
  mean = float(rates.mean() - base.mean())
  if min(len(rates), len(base)) < 2:
    return mean, -np.inf, np.inf
  if spread:
    variance = spread.variance * (1 / len(rates) + 1 / len(base))
    half = _student(spread.freedom) * variance**0.5
  else:
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "Precision loss")  # as all rates equal
      test = stats.ttest_ind(rates, base, equal_var=False)
    half = np.ptp(test.confidence_interval(LEVEL)) / 2
  by_image = wrong.mean(axis=0) - wrong_base.mean(axis=0)
  noise = _noise(wrong) + _noise(wrong_base)
  return _over_images(mean, half, by_image, noise)


def of_paired_difference(
  wrong: np.ndarray, wrong_base: np.ndarray
) -> tuple[float, float, float]:
  """Returns the difference of two error rates of the same nets, low and high.

  Args:
    wrong: bool [S, N], whether each net got each image wrong.
    wrong_base: bool [S, N], the same for these nets, tested in another way.
  """
  differences = wrong.astype(np.float64) - wrong_base
  mean, low, high = of_mean(differences.mean(axis=1))
  if len(differences) < 2:
    return mean, low, high
  return _over_images(
    mean, (high - low) / 2, differences.mean(axis=0), _noise(differences)
  )


def _noise(values_SxN: np.ndarray) -> float:
  """Returns the variance of the mean due to the luck of each net and image."""
  seeds, images = values_SxN.shape
  within = values_SxN - values_SxN.mean(axis=1, keepdims=True)
  return float(within.var(axis=0, ddof=1).mean() / (seeds * images))


def _over_images(
  mean: float, half: float, by_image: np.ndarray, noise: float
) -> tuple[float, float, float]:
  """Returns a mean and its interval for other seeds and other images.

  Two variances add up, of the seeds and of the images. Both contain the noise
  of one net on one image, so the second is taken without it. A few seeds may
  agree by chance, so the interval is at least as wide as that of the images.

  Args:
    mean: over seeds and images.
    half: the interval's half width for other seeds alone.
    by_image: float [N], the mean over seeds for each image.
    noise: the part of the variance of `mean` that is counted twice.
  """
  half = np.nan_to_num(half)  # Equal rates have no test statistic.
  images = float(by_image.var(ddof=1) / len(by_image))
  both = half**2 + _NORMAL**2 * max(images - noise, 0)
  wide = float(max(both, _NORMAL**2 * images) ** 0.5)
  return mean, mean - wide, mean + wide


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


def verdict(
  low: float, high: float, sign: int, original: float | None = None
) -> str:
  """Returns one of VERDICTS, of an interval beside the original's effect.

  If the original gives a number, "agrees" also says whether the interval
  contains it.

  Args:
    low: end of the interval.
    high: end of the interval.
    sign: of the original's effect; 0 if there is none.
    original: its effect, if it gives a number.
  """
  if not sign:
    return "nothing to compare"
  low, high = sorted((sign * low, sign * high))
  size = None if original is None else sign * original
  if high < 0:
    return DISAGREES
  if size is not None and high < size:
    return SMALLER
  if low <= 0:
    return UNDECIDED
  if size is None:
    return AGREES
  return f"{AGREES}, {'also in size' if low <= size else 'larger'}"
