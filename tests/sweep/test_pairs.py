"""The rule of pairs against a slow reference and closed forms, and the simulation of luck against its own."""

import math
import statistics

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from scipy.stats import t as student

from lit_vision.sweep.luck import best_by_luck, spread_over_seeds
from lit_vision.sweep.pairs import false_stop_rate, given_up, next_runs


def slow_rule(table):
    means = [statistics.fmean(row) for row in table]
    leader = means.index(max(means))
    differences = [[x - y for x, y in zip(row, table[leader])] for row in table]
    everything, by_seed = statistics.fmean(map(statistics.fmean, table)), [statistics.fmean(c) for c in zip(*table)]
    rest = [x - m - s + everything for row, m in zip(table, means) for x, s in zip(row, by_seed)]
    pooled = 2 * sum(x * x for x in rest) / ((len(table) - 1) * (len(by_seed) - 1))
    out = []
    for difference in differences:
        error = math.sqrt(max(statistics.variance(difference), pooled) / len(difference))
        out.append(error > 0 and statistics.fmean(difference) < -3 * error)
    return out


def test_rule_is_the_slow_one():
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(200):
        table = rng.normal(rng.normal(0, 2, (5, 1)), 1, (5, int(rng.integers(2, 6))))
        assert given_up(table).tolist() == slow_rule(table.tolist())
        stopped += given_up(table).sum()
    assert 50 < stopped < 700  # both outcomes occur


def test_rule_keeps_all_where_nothing_can_be_said():
    assert not given_up(np.array([[0.9], [0.1]])).any()  # one seed
    assert not given_up(np.array([[0.9, 0.8], [0.8, 0.7]])).any()  # no spread, so no standard error
    assert given_up(np.array([[0.9, 0.8], [0.2, 0.101]])).tolist() == [False, True]


def test_false_stop_rate_of_two_settings_has_a_closed_form():
    """The leader of two has the larger mean, so either sign of Student's t with one degree of freedom stops one."""
    assert false_stop_rate(2, 2, draws=0) == pytest.approx(2 * student(1).cdf(-3), abs=0.01)  # 0.205
    assert false_stop_rate(20, 3, draws=300) < 0.05  # the spread of many settings makes the rule far safer


def make_sweep(worse, noise, seeds):
    """Return the runs that next_runs asks for, round by round, and what it gives up."""
    values = {setting: {0: value} for setting, value in enumerate(worse)}
    asked = []
    while True:
        runs, stopped = next_runs(values, seeds, minimize=False)
        if not runs:
            return asked, stopped
        asked.append(runs)
        for setting, seed in runs:
            values[setting][seed] = worse[setting] + noise[setting][seed]


def test_rounds_run_the_best_first_and_leave_out_what_was_given_up():
    noise = np.random.default_rng(0).normal(0, 0.01, (4, 4))
    asked, stopped = make_sweep([0.5, 0.81, 0.3, 0.809], noise, [0, 1, 2, 3])
    assert asked[0] == [(1, 1), (3, 1), (0, 1), (2, 1)]
    assert stopped == {0: 2, 2: 2}
    assert [{setting for setting, _ in runs} for runs in asked[1:]] == [{1, 3}, {1, 3}]


def test_failed_runs_leave_their_setting_and_losses_are_minimized():
    values = {0: {0: 0.5}, 1: {0: None}, 2: {0: 0.4}}
    assert next_runs(values, [0, 1], minimize=True) == ([(2, 1), (0, 1)], {})
    assert next_runs(values, [0, 1], minimize=False)[0] == [(0, 1), (2, 1)]
    values[2][1] = None
    assert next_runs(values, [0, 1, 2], minimize=True)[0] == [(0, 1)]
    values[0][1] = 0.6
    assert next_runs(values, [0, 1, 2], minimize=True)[0] == [(0, 2)]
    assert next_runs({0: {0: None}}, [0, 1], minimize=True) == ([], {})


@pytest.mark.parametrize("arms", [1, 2, 5, 20])
def test_luck_is_the_expected_maximum_of_normal_values(arms):
    expected = quad(lambda x: x * arms * norm.pdf(x) * norm.cdf(x) ** (arms - 1), -9, 9)[0]
    assert expected == pytest.approx({1: 0, 2: 1 / math.sqrt(math.pi)}.get(arms, expected))
    luck = best_by_luck(arms, 4, 0.02)
    assert luck.mean == pytest.approx(expected * 0.02 / 2, abs=3e-4)  # 4 seeds halve the spread
    assert luck.high == pytest.approx(norm.ppf(0.95 ** (1 / arms)) * 0.01, abs=5e-4)


def test_spread_leaves_out_what_settings_and_seeds_do():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.1, (40, 30)) + rng.normal(0, 5, (40, 1)) + rng.normal(0, 5, (1, 30))
    assert spread_over_seeds(values.tolist()) == pytest.approx(0.1, rel=0.06)
    assert spread_over_seeds([[1.0], [2.0]]) is None
    assert spread_over_seeds([[1.0, 2.0]]) is None
    assert spread_over_seeds([]) is None
