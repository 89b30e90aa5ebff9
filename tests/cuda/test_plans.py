"""Plans of calls: what makes two calls of one kind, and what a plan does with memory."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda import elementwise, linear, plans
from fastrelu.cuda.plans import Place
from tests.cuda.values import to_host

X = np.array([[-1, 2, -3, 4], [5, -6, 7, -8]], np.float32)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The elementwise plans that are written from now on."""
    plans.clear()
    calls: list[Any] = []
    write = elementwise.calculate

    def calculate(draft: Any, *how: Any) -> Any:
        calls.append(how)
        return write(draft, *how)

    monkeypatch.setattr(elementwise, "calculate", calculate)
    return calls


def test_same_kind_of_call_is_planned_once(device: Any, written: list[Any]) -> None:
    for values in (X, X - 1, X * 2):
        assert_array_equal(to_host(fastrelu.relu(device.array(values))), np.maximum(values, 0))
    assert len(written) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda x, y: fastrelu.relu(x[1:]),
        lambda x, y: fastrelu.relu(x[:, ::2]),
        lambda x, y: fastrelu.relu(x[:, 1:]),
        lambda x, y: fastrelu.tanh(x),
        lambda x, y: fastrelu.relu(x, out=y),
        lambda x, y: fastrelu.relu(x, out=x),
        lambda x, y: fastrelu.relu(x, dtype="f8"),
        lambda x, y: fastrelu.relu(x, order="F"),
        lambda x, y: fastrelu.relu(x, where=False),
    ],
    ids=["shape", "strides", "alignment", "operation", "output", "overlap", "dtype", "order", "where"],
)
def test_another_kind_of_call_is_planned_anew(other: Any, device: Any, written: list[Any]) -> None:
    x, y = device.array(X), device.array(X)
    fastrelu.relu(x)
    other(x, y)
    assert len(written) == 2


def test_numbers_are_filled_in(device: Any, written: list[Any]) -> None:
    x = np.array([-1, 0, 1], np.float32)
    for alpha in (0.5, 0.0, -0.0, np.nan, 2.0):
        got = to_host(fastrelu.leaky_relu(device.array(x), alpha))
        wanted = fastrelu.leaky_relu(x, alpha)
        assert_array_equal(got, wanted)
        assert_array_equal(np.signbit(got), np.signbit(wanted))
    assert len(written) == 1
    fastrelu.leaky_relu(device.array(x), 1)  # an int, which may be of another type
    assert len(written) == 2


def test_number_that_does_not_fit_is_refused_in_every_call(device: Any) -> None:
    x = np.array([1, 0], np.uint8)
    for _ in range(2):
        assert_array_equal(to_host(fastrelu.relu_derivative(device.array(x), 7)), [1, 7])
        with pytest.raises(OverflowError, match=r"^relu_derivative: at_zero must be within the range of uint8, not 256$"):
            fastrelu.relu_derivative(device.array(x), 256)


def test_overlaps_by_other_distances(device: Any, written: list[Any]) -> None:
    for distance in (0, 1, 4, 5, 1):
        memory = np.linspace(-3, 3, 40, dtype=np.float32)
        whole = device.array(memory)
        fastrelu.relu(whole[5:25], out=whole[5 + distance : 25 + distance])
        memory[5 + distance : 25 + distance] = np.maximum(memory[5:25], 0)
        assert_array_equal(whole.host, memory)
    assert len(written) == 4


def test_output_over_two_operands(device: Any) -> None:
    memory = np.linspace(-3, 3, 40, dtype=np.float32)
    whole = device.array(memory)
    for _ in range(2):
        wanted = fastrelu.relu_backward(whole.host[:16].copy(), whole.host[20:36].copy())
        out = whole[10:26]  # over the end of the one, and the beginning of the other
        assert fastrelu.relu_backward(whole[:16], whole[20:36], out=out) is out
        assert_array_equal(out.host, wanted)


def test_result_is_the_array_that_was_given(device: Any) -> None:
    for _ in range(2):
        x = device.array(X)
        same = type(x)(device, x.host)
        assert fastrelu.relu(x, out=same) is same


def test_new_memory_of_every_call(device: Any) -> None:
    x = device.array(X)
    first, second = fastrelu.relu(x), fastrelu.relu(x)
    assert first.pointer != second.pointer
    empty = [fastrelu.relu(device.array(X[:0])) for _ in range(2)]
    assert [array.shape for array in empty] == [(0, 4)] * 2


def test_memory_is_left_after_its_last_use(device: Any, planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.test_linear import SMALL

    x, w = device.array(np.ones((2, 257), np.float32)), device.array(np.ones((257, 4), np.float32))
    planned(SMALL, 1)
    held, most, launch = len(device._allocated), [], device.launch
    monkeypatch.setattr(device, "launch", lambda *call: (most.append(len(device._allocated) - held), launch(*call)))
    for _ in range(2):
        y = fastrelu.linear(x, w)
        assert len(device._allocated) - held == 1
        del y
        gc.collect()
        assert len(device._allocated) == held
    assert most == [2] * 4  # the result, and the sums that wait


def test_plans_are_bounded(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.clear()
    monkeypatch.setattr(plans, "KEPT", 3)
    for n in [*range(1, 8), 7, 1]:
        assert_array_equal(to_host(fastrelu.relu(device.array(np.full(n, -1.0)))), np.zeros(n))
        assert len(plans._plans) <= 3


def test_long_plan_is_not_kept(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.clear()
    monkeypatch.setattr(plans, "_LONGEST", 2)
    x, w = np.ones((5, 1, 3), np.float32), np.ones((3, 3, 4), np.float32)
    for batch in (2, 3):  # as many products
        result = fastrelu.linear(device.array(x), device.array(w[:batch]))
        assert_array_equal(to_host(result), np.full((5, batch, 4), 3))
        assert len(plans._plans) == 1


def test_refused_call_leaves_no_plan(device: Any) -> None:
    plans.clear()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^linear: w must have shape"):
            fastrelu.linear(device.array(X), device.array(X))
    assert not plans._plans


def test_threads_plan_side_by_side(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.clear()
    both, done, write = threading.Barrier(2), [], linear._write

    def at_once(*arguments: Any) -> Any:
        both.wait(timeout=60)
        return write(*arguments)

    monkeypatch.setattr(linear, "_write", at_once)
    w = np.ones((4, 3), np.float32)

    def call() -> None:
        done.append(to_host(fastrelu.linear(device.array(X), device.array(w))))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    for y in done:
        assert_array_equal(y, X @ w)


def test_places_compare_as_ranges_of_addresses() -> None:
    a, b = Place(0, 4), Place(1, 0)
    assert a + 12 == Place(0, 16)
    assert (a + 12) % 16 == 0
    assert a < a + 1
    # Two ranges meet if each begins before the other's end: in different arrays never.
    assert not (a < b + 100 and b < a + 100)
