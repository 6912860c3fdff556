"""A double pendulum of two equal arms of 1 m and equal weights, integrated by Runge and Kutta's fourth-order method."""

from __future__ import annotations

from math import cos, pi, sin

G = 9.81
"""m/s²"""
STEP_S = 0.01

State = tuple[float, float, float, float]
"""Both angles from hanging straight down (rad), and how fast they change (rad/s)."""


def change(state: State) -> State:
    """Return the derivative of the state.

    Source: Lagrange's equations for the double pendulum with m1 = m2 and l1 = l2 = 1.
    """
    upper, lower, upper_speed, lower_speed = state
    between = upper - lower
    below = 3 - cos(2 * between)
    upper_force = (
        -3 * G * sin(upper)
        - G * sin(upper - 2 * lower)
        - 2 * sin(between) * (lower_speed**2 + upper_speed**2 * cos(between))
    )
    lower_force = 2 * sin(between) * (2 * upper_speed**2 + 2 * G * cos(upper) + lower_speed**2 * cos(between))
    return upper_speed, lower_speed, upper_force / below, lower_force / below


def moved(state: State, by: State, step_s: float) -> State:
    upper, lower, upper_speed, lower_speed = (value + step_s * slope for value, slope in zip(state, by, strict=True))
    return upper, lower, upper_speed, lower_speed


def step(state: State, step_s: float) -> State:
    """Return the state `step_s` seconds later."""
    first = change(state)
    second = change(moved(state, first, step_s / 2))
    third = change(moved(state, second, step_s / 2))
    fourth = change(moved(state, third, step_s))
    for slopes, part in ((first, 1 / 6), (second, 1 / 3), (third, 1 / 3), (fourth, 1 / 6)):
        state = moved(state, slopes, part * step_s)
    return state


def energy(state: State) -> float:
    """Return kinetic and potential energy per kilogram (J/kg): constant but for the error of the integration."""
    upper, lower, upper_speed, lower_speed = state
    kinetic = upper_speed**2 + lower_speed**2 / 2 + upper_speed * lower_speed * cos(upper - lower)
    return kinetic - G * (2 * cos(upper) + cos(lower))


def first_flip_s(upper: float, lower: float, limit_s: float) -> float | None:
    """Return when the lower arm, let go at rest from these angles (rad), first passes the top; None: not in time."""
    if 2 * cos(upper) + cos(lower) > 1:
        return None  # there is not enough energy for it
    state: State = (upper, lower, 0.0, 0.0)
    for number in range(1, int(limit_s / STEP_S) + 1):
        state = step(state, STEP_S)
        if abs(state[1]) > pi:
            return round(number * STEP_S, 6)
    return None
