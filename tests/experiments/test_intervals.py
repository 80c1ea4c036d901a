"""Intervals: of known truths, of bootstraps, and written out."""

import numpy as np
import pytest
from scipy import stats

from experiments.harness import intervals


def test_interval_of_a_mean_is_students():
  values = np.array([0.21, 0.24, 0.2, 0.26, 0.23])
  mean = sum(values) / 5
  deviation = (sum((values - mean) ** 2) / 4) ** 0.5
  half = 2.7764451 * deviation / 5**0.5  # Student's quantile, 4 degrees
  found = intervals.of_mean(values)
  assert found == pytest.approx((mean, mean - half, mean + half))
  assert intervals.of_mean(values[:1])[1:] == (-np.inf, np.inf)


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("of_images", [0.0, 1.0])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(
  of_seeds, of_images
):
  """Simulated nets: luck of seeds, images that one arm finds harder, noise."""
  rng = np.random.default_rng(0)
  seeds, images, trials, truth = 3, 1000, 400, 0.02
  held = 0
  for _ in range(trials):
    rates = 0.2 + rng.normal(0, of_seeds, (2, seeds, 1)) + [[[truth]], [[0]]]
    hard = rng.normal(0, of_images, (2, 1, images))
    noise = rng.normal(0, 0.6, (2, seeds, images))
    scale = (of_images**2 + 0.36) ** 0.5
    wrong, base = hard + noise > stats.norm.isf(rates, scale=scale)
    _, low, high = intervals.of_paired_difference(wrong, base)
    held += low <= truth <= high
  # Within three binomial deviations; two quantiles together may be too wide.
  deviation = (0.95 * 0.05 / trials) ** 0.5
  assert 0.95 - 3 * deviation <= held / trials <= 0.995


def test_paired_variance_is_what_two_bootstraps_come_to():
  rng = np.random.default_rng(1)
  chances = np.linspace(0.3, 0.32, 5)[:, None] + rng.choice([-0.25, 0.25], 3000)
  wrong = rng.random((5, 3000)) < chances
  base = rng.random((5, 3000)) < 0.2
  mean, low, high = intervals.of_paired_difference(wrong, base)
  difference = wrong.astype(float) - base
  assert mean == pytest.approx(difference.mean())
  seeds = [
    difference.mean(axis=1)[rng.integers(0, 5, 5)].mean() for _ in range(8000)
  ]
  images = [
    difference.mean(axis=0)[rng.integers(0, 3000, 3000)].mean()
    for _ in range(4000)
  ]
  # The chances are known here, and so is the luck of one net with one image.
  noise = ((chances * (1 - chances)).mean() + 0.2 * 0.8) / (5 * 3000)
  by_seeds = np.var(seeds) * 5 / 4
  half = np.hypot(
    stats.t.ppf(0.975, 4) * by_seeds**0.5,
    stats.norm.ppf(0.975) * (np.var(images) - noise) ** 0.5,
  )
  assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_interval_is_never_narrower_than_its_images_allow():
  """Seeds may agree by luck; the images are still a sample."""
  rng = np.random.default_rng(2)
  wrong, base = np.zeros((2, 3, 10_000), bool)
  for seed in range(3):  # 420 lost, 380 won: 0.4 points with every seed.
    images = rng.permutation(10_000)
    wrong[seed, images[:420]] = base[seed, images[420:800]] = True
  mean, low, high = intervals.of_paired_difference(wrong, base)
  each = (wrong.astype(float) - base).mean(axis=0)
  means = [each[rng.integers(0, 10_000, 10_000)].mean() for _ in range(4000)]
  assert mean == pytest.approx(0.004)
  assert (high - low) / 2 == pytest.approx(1.96 * np.std(means), rel=0.05)


def test_ratio_and_its_interval_do_not_depend_on_who_is_on_top():
  tanh, relu = np.array([30.0, 31, 29, 33]), np.array([5.0, 6, 5.5, 5.2])
  ratio, low, high = intervals.of_ratio(tanh, relu)
  assert ratio == pytest.approx(stats.gmean(tanh) / stats.gmean(relu))
  inverse = intervals.of_ratio(relu, tanh)
  assert inverse == pytest.approx((1 / ratio, 1 / high, 1 / low))
  # Welch's, written out.
  a, b = np.log(tanh), np.log(relu)
  parts = a.var(ddof=1) / 4, b.var(ddof=1) / 4
  freedom = sum(parts) ** 2 / sum(part**2 / 3 for part in parts)
  half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
  assert (low, high) == pytest.approx(
    (ratio * np.exp(-half), ratio * np.exp(half))
  )


@pytest.mark.parametrize(
  ("low", "high", "sign", "said"),
  [
    (0.1, 0.4, 1, "agrees"),
    (-0.4, -0.1, 1, "disagrees"),
    (-0.1, 0.4, 1, "undecided"),
    (-0.4, -0.1, -1, "agrees"),
    (0.1, 0.4, 0, "nothing to compare"),
  ],
)
def test_verdict_follows_the_interval(low, high, sign, said):
  assert intervals.verdict(low, high, sign) == said
