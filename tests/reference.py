"""Slow, literal twins of the package's formulas: plain Python loops, straight from the papers, no call of the package.

Steps count from 1 here, as in the papers; position t of a list is step t + 1.
"""

import math
from itertools import accumulate


def median_smoothing(norms, smoothing):
    """Median filter of width W = 2 * (int(tau * T) // 2) + 1: extend by 2W samples on both sides, filter, cut."""
    norms = [float(value) for value in norms]
    steps = len(norms)
    width = 2 * (int(smoothing * steps) // 2) + 1
    extended = [norms[0]] * (2 * width) + norms + mirrored_continuation(norms, 2 * width)
    filtered = []
    for center in range(2 * width, 2 * width + steps):
        window = sorted(extended[center - width // 2 : center + width // 2 + 1])
        filtered.append(window[width // 2])
    return filtered


def mirrored_continuation(values, count):
    """What follows when a sequence is mirrored about its last value, and again about its first, without repeating either."""
    continuation = []
    position, direction = len(values) - 1, -1
    for _ in range(count):
        if not 0 <= position + direction < len(values):
            direction = -direction
        position += direction
        continuation.append(values[position])
    return continuation


def multipliers_of(smoothed, power):
    """eta_t = w_t * sum_{p > t} w_p with w_t = smoothed_t ** power, divided by the largest eta."""
    weights = [value**power for value in smoothed]
    products = []
    for t in range(len(weights)):
        tail = 0.0
        for p in range(t + 1, len(weights)):
            tail += weights[p]
        products.append(weights[t] * tail)
    return [product / max(products) for product in products]


def refined_schedule(norms, power, smoothing):
    """Smooth, weigh, sum the tail: arXiv 2310.07831, Algorithm 1."""
    return multipliers_of(median_smoothing(norms, smoothing), power)


def bounded_warmup_rates(norms, smoothing):
    """Adam's multipliers at t = 0 .. T-1: (1 - u) times the factor of rising norms ignored, between ramps over 20 % and 5 %."""
    smallest = list(accumulate(median_smoothing(norms, smoothing), min))
    grid = multipliers_of([*smallest, smallest[-1]], -1)
    steps = len(grid) - 1
    factors = [grid[t] / (1 - t / steps) for t in range(steps)]
    rates = []
    for t in range(steps):
        progress = t / steps
        lower, upper = min(1, progress / 0.2), min(1, progress / 0.05)
        rates.append((1 - progress) * min(max(factors[t] / factors[-1], lower), upper))
    return [rate / max(rates) for rate in rates]


def refined_grid(norms, power, smoothing, num_training_steps=None):
    """The same over T+1 iterates: the last smoothed norm is repeated to the end of the run and once more."""
    smoothed = median_smoothing(norms, smoothing)
    total = len(smoothed) if num_training_steps is None else num_training_steps
    while len(smoothed) < total + 1:
        smoothed.append(smoothed[-1])
    return multipliers_of(smoothed, power)


def bound_terms(step_sizes, squared_norms, distance=1.0):
    """The three terms of arXiv 2310.07831, Theorem 10, every sum written out; `squared_norms` holds G_t^2."""
    steps = len(step_sizes)
    eta = [math.nan, *step_sizes]  # eta[1] is the first, as in the paper
    squares = [math.nan, *squared_norms]

    def step_sum(k):
        return sum(eta[t] for t in range(k, steps + 1))

    def noise_sum(k):
        return sum(eta[t] ** 2 * squares[t] for t in range(k, steps + 1))

    last_iterate = 0.0
    for k in range(1, steps):
        last_iterate += 0.5 * (eta[k] / step_sum(k + 1)) * (noise_sum(k) / step_sum(k))
    return distance**2 / (2 * step_sum(1)), noise_sum(1) / (2 * step_sum(1)), last_iterate


def annealing_sum(rates, decay):
    """S_2(t) (1 - lambda) with S_2(t) = sum_{i <= t} sum_{k <= i} (eta_{k-1} - eta_k) lambda^(i-k), eta_0 = 0."""
    annealing = []
    for t in range(1, len(rates) + 1):
        total = 0.0
        for i in range(1, t + 1):
            for k in range(1, i + 1):
                before = rates[k - 2] if k > 1 else 0.0
                total += (before - rates[k - 1]) * decay ** (i - k)
        annealing.append((1 - decay) * total)
    return annealing


def exponential_annealing(rates, speed):
    """D(t) = -m_t, a mean m of eta^0.8 so far that forgets at the speed of the rates."""
    mean, annealing = 0.0, []
    for rate in rates:
        kept = math.exp(-speed * rate)
        mean = kept * mean + (1 - kept) * rate**0.8
        annealing.append(-mean)
    return annealing


def decay_per_decrease(rates, speed, beta, gamma):
    """LD(t) / B = sum_{k <= t} (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-gamma S_k(t))^-beta), eta_0 = 0."""
    rates = [float(rate) for rate in rates]
    annealing = []
    for t in range(1, len(rates) + 1):
        total, since = 0.0, 0.0
        for k in range(t, 0, -1):
            before = rates[k - 2] if k > 1 else 0.0
            since += rates[k - 1]
            total += (before - rates[k - 1]) * (1 - (1 + speed * rates[k - 1] ** -gamma * since) ** -beta)
        annealing.append(total)
    return annealing
