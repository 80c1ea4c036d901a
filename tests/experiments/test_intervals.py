"""Intervals: of known truths, of bootstraps, and written out."""

import itertools

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


def nets_of(*rates, images=100):
  """Returns nets of these rates that together miss each image once."""
  ends = np.cumsum([0, *rates]) * images
  each = np.arange(images)
  return np.array(
    [
      (each >= low - 0.5) & (each < high - 0.5)
      for low, high in itertools.pairwise(ends)
    ]
  )


@pytest.mark.parametrize("pooled", [False, True])
def test_interval_of_images_that_are_all_alike_is_scipys(pooled):
  """Of all images equally often missed, the seeds alone are a sample."""
  rates, base = (0.2, 0.3, 0.5), (0.1, 0.15, 0.2, 0.25, 0.3)
  arms = nets_of(*rates), nets_of(*base)
  assert [tuple(x.mean(axis=1)) for x in arms] == [rates, base]
  spread = intervals.spread_of([x.mean(axis=1) for x in arms])
  found = intervals.of_difference(*arms, spread if pooled else None)
  test = stats.ttest_ind(rates, base, equal_var=pooled)
  expected = test.confidence_interval(0.95)
  mean = np.mean(rates) - np.mean(base)
  assert found == pytest.approx((mean, expected.low, expected.high))
  paired = intervals.of_paired_difference(arms[0], nets_of(0.3, 0.3, 0.4))
  test = stats.ttest_rel(rates, (0.3, 0.3, 0.4))
  expected = test.confidence_interval(0.95)
  assert paired == pytest.approx((0, expected.low, expected.high), abs=1e-9)
  for one in (intervals.of_difference, intervals.of_paired_difference):
    assert one(arms[0][:1], arms[1][:1])[1:] == (-np.inf, np.inf)


def simulated(rng, of_seeds, of_images, counts, images, truth):
  """Nets: luck of seeds, images that one arm finds harder, and noise."""
  scale = (of_images**2 + 0.36) ** 0.5
  for count, rate in zip(counts, (0.2 + truth, 0.2), strict=True):
    rates = rate + rng.normal(0, of_seeds, (count, 1))
    hard = rng.normal(0, of_images, images)
    noise = rng.normal(0, 0.6, (count, images))
    yield hard + noise > stats.norm.isf(rates, scale=scale)


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("of_images", [0.0, 1.0])
@pytest.mark.parametrize("way", ["paired", "own spread", "common spread"])
def test_intervals_hold_the_truth_as_often_as_they_say(
  way, of_seeds, of_images
):
  rng = np.random.default_rng(0)
  trials, truth = 400, 0.02
  counts = (3, 3) if way == "paired" else (3, 7)
  held = 0
  for _ in range(trials):
    nets = [*simulated(rng, of_seeds, of_images, counts, 1000, truth)]
    if way == "paired":
      _, low, high = intervals.of_paired_difference(*nets)
    else:
      common = way == "common spread"
      rates = [x.mean(axis=1) for x in nets]
      spread = intervals.spread_of(rates) if common else None
      _, low, high = intervals.of_difference(*nets, spread)
    held += low <= truth <= high
  # Within three binomial deviations; two quantiles together may be too wide.
  deviation = (0.95 * 0.05 / trials) ** 0.5
  assert 0.95 - 3 * deviation <= held / trials <= 0.995


@pytest.mark.parametrize("paired", [False, True])
def test_variance_is_what_two_bootstraps_come_to(paired):
  rng = np.random.default_rng(1)
  chances = np.linspace(0.3, 0.32, 5)[:, None] + rng.choice([-0.25, 0.25], 3000)
  base_chances = np.linspace(0.2, 0.22, 5 if paired else 7)[:, None]
  wrong = rng.random((5, 3000)) < chances
  base = rng.random((len(base_chances), 3000)) < base_chances

  def bootstrap(rates):
    chosen = rng.integers(0, len(rates), (8000, len(rates)))
    # Of means of S values: (S - 1) / S of the variance.
    return rates[chosen].mean(axis=1).var() * len(rates) / (len(rates) - 1)

  ours, theirs = wrong.mean(axis=1), base.mean(axis=1)
  if paired:
    mean, low, high = intervals.of_paired_difference(wrong, base)
    by_seeds, freedom = bootstrap(ours - theirs), 4
  else:
    mean, low, high = intervals.of_difference(wrong, base)
    parts = bootstrap(ours), bootstrap(theirs)
    by_seeds = sum(parts)
    freedom = by_seeds**2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 6)
  assert mean == pytest.approx(ours.mean() - theirs.mean())
  by_image = wrong.mean(axis=0) - base.mean(axis=0)
  by_images = np.var(
    [by_image[rng.integers(0, 3000, 3000)].mean() for _ in range(4000)]
  )
  # The chances are known here, and so is the luck of one net with one image.
  noise = sum(
    (x * (1 - x)).mean() / (len(x) * 3000)
    for x in (chances, np.broadcast_to(base_chances, base.shape))
  )
  half = np.hypot(
    stats.t.ppf(0.975, freedom) * by_seeds**0.5,
    stats.norm.ppf(0.975) * (by_images - noise) ** 0.5,
  )
  assert (high - low) / 2 == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize(
  "interval", [intervals.of_difference, intervals.of_paired_difference]
)
def test_interval_is_never_narrower_than_its_images_allow(interval):
  """Seeds may agree by luck; the images are still a sample."""
  rng = np.random.default_rng(2)
  wrong, base = np.zeros((2, 3, 10_000), bool)
  for seed in range(3):  # 420 lost, 380 won: 0.4 points with every seed.
    images = rng.permutation(10_000)
    wrong[seed, images[:420]] = base[seed, images[420:800]] = True
  mean, low, high = interval(wrong, base)
  each = (wrong.astype(float) - base).mean(axis=0)
  means = [each[rng.integers(0, 10_000, 10_000)].mean() for _ in range(4000)]
  assert mean == pytest.approx(0.004)
  assert (high - low) / 2 == pytest.approx(1.96 * np.std(means), rel=0.05)


def test_spread_is_common_to_arms_that_differ_by_luck_alone():
  """Groups as in the ablations: 7 nets of the base, 2 or 3 of an arm."""
  rng = np.random.default_rng(3)
  sizes = [7, 2] + [3] * 22
  rates = [rng.normal(0.2, 0.003, size) for size in sizes]
  found = intervals.spread_of(rates)
  squares = [((x - sum(x) / len(x)) ** 2).sum() for x in rates]
  assert found.freedom == 6 + 1 + 22 * 2
  assert found.variance == pytest.approx(sum(squares) / found.freedom)

  def share(deviations):
    return np.mean(
      [
        intervals.spread_of(
          [
            rng.normal(0.2, d, n)
            for d, n in zip(deviations, sizes, strict=True)
          ]
        ).is_common
        for _ in range(200)
      ]
    )

  assert share([0.003] * 24) == pytest.approx(0.95, abs=0.05)
  assert share(np.geomspace(0.001, 0.016, 24)) < 0.05


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
  ("low", "high", "sign", "original", "said"),
  [
    (0.1, 0.4, 1, None, "agrees"),
    (-0.4, -0.1, 1, None, "disagrees"),
    (-0.1, 0.4, 1, None, "undecided"),
    (-0.4, -0.1, -1, None, "agrees"),
    (0.1, 0.4, 0, None, "nothing to compare"),
    (0.1, 0.4, 1, 0.3, "agrees, also in size"),
    (-0.4, -0.1, -1, -0.3, "agrees, also in size"),
    (0.1, 0.4, 1, 0.05, "agrees, larger"),
    (-0.4, -0.1, -1, -0.05, "agrees, larger"),
    (0.1, 0.4, 1, 0.5, "smaller than the original"),
    (-0.1, 0.4, 1, 0.5, "smaller than the original"),
    (-0.4, 0.1, -1, -0.5, "smaller than the original"),
    (-0.1, 0.4, 1, 0.3, "undecided"),
    (-0.4, -0.1, 1, 0.3, "disagrees"),
    (0.1, 0.4, -1, -0.3, "disagrees"),
  ],
)
def test_verdict_follows_the_interval(low, high, sign, original, said):
  assert intervals.verdict(low, high, sign, original) == said
