"""Arrays of other libraries come back as such; the ufunc protocol does it, and no library is named in the package."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from bench.callables import CASES, Case
from fastrelu import ufuncs

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def data(case: Case, shape: tuple[int, ...] = (6, 4)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(3 * rng.standard_normal(shape)).astype(np.float32) for _ in case.data]


def call(case: Case, operands: list[Any], **keywords: Any) -> Any:
    return case.ours(*operands, *case.parameters, **keywords)


@ALL
def test_pandas_series_keeps_index_and_name(case: Case) -> None:
    pd = pytest.importorskip("pandas")
    operands = data(case, (6,))
    result = call(case, [pd.Series(a, index=list("abcdef"), name="layer") for a in operands])
    pd.testing.assert_series_equal(result, pd.Series(call(case, operands), index=list("abcdef"), name="layer"))


@ALL
def test_pandas_dataframe_keeps_labels(case: Case) -> None:
    pd = pytest.importorskip("pandas")
    operands, labels = data(case), {"index": list("abcdef"), "columns": list("wxyz")}
    result = call(case, [pd.DataFrame(a, **labels) for a in operands])
    # Beside a number pandas makes the frame one of float64, as it does for np.logaddexp.
    pd.testing.assert_frame_equal(result, pd.DataFrame(call(case, operands), **labels), check_dtype=False)


def test_pandas_operands_are_aligned_by_label() -> None:
    pd = pytest.importorskip("pandas")
    dy, y = pd.Series([1.0, 2.0], index=["a", "b"]), pd.Series([3.0, -3.0], index=["b", "a"])
    pd.testing.assert_series_equal(fastrelu.relu_backward(dy, y), pd.Series([0.0, 2.0], index=["a", "b"]))


def test_pandas_columns_of_different_types_keep_theirs() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"i": np.array([-1, 2], np.int16), "f": np.array([-0.5, 0.5], np.float32)})
    result = fastrelu.relu(frame)
    assert [str(t) for t in result.dtypes] == ["int16", "float32"]
    assert_array_equal(result, [[0, 0], [2, 0.5]])


def test_pandas_missing_values_stay_missing() -> None:
    pd = pytest.importorskip("pandas")
    result = fastrelu.relu(pd.Series([-1.0, None, 2.0], dtype="Float64"))
    pd.testing.assert_series_equal(result, pd.Series([0.0, None, 2.0], dtype="Float64"))


@ALL
def test_xarray_keeps_dimensions_coordinates_and_name(case: Case) -> None:
    xr = pytest.importorskip("xarray")
    operands, coords = data(case), {"row": np.arange(6) * 10, "column": list("wxyz")}
    result = call(case, [xr.DataArray(a, coords, ["row", "column"], name="layer") for a in operands])
    xr.testing.assert_identical(result, xr.DataArray(call(case, operands), coords, ["row", "column"], name="layer"))


def test_xarray_broadcasts_by_dimension_name() -> None:
    xr = pytest.importorskip("xarray")
    x, alpha = -np.arange(1.0, 7.0).reshape(2, 3), np.array([0.5, 0.25])
    result = fastrelu.prelu(xr.DataArray(x, dims=["channel", "pixel"]), xr.DataArray(alpha, dims=["channel"]))
    assert result.dims == ("channel", "pixel")
    assert_array_equal(result, x * alpha[:, None])


@ALL
def test_dask_is_lazy_and_computes_the_same(case: Case) -> None:
    da = pytest.importorskip("dask.array")
    operands = data(case, (60, 40))
    result = call(case, [da.from_array(a, chunks=(25, 17)) for a in operands])
    assert isinstance(result, da.Array)
    assert (result.shape, result.dtype, result.chunks) == ((60, 40), np.float32, ((25, 25, 10), (17, 17, 6)))
    assert_array_equal(result.compute(scheduler="threads"), call(case, operands), strict=True)


def test_dask_tells_our_tanh_from_that_of_numpy() -> None:
    # It names results by their function and shares those of one name.
    da = pytest.importorskip("dask.array")
    x = da.from_array(np.ones(3), chunks=3)
    assert fastrelu.tanh(x).name != np.tanh(x).name
    assert fastrelu.tanh(x).name == fastrelu.tanh(x).name


@ALL
def test_masked_array_keeps_its_mask(case: Case) -> None:
    operands = data(case)
    mask = np.zeros((6, 4), bool)
    mask[1, 2] = mask[5, 0] = True
    result = call(case, [np.ma.array(a, mask=mask) for a in operands])
    assert type(result) is np.ma.MaskedArray
    assert_array_equal(result.mask, mask)
    assert_array_equal(result.compressed(), call(case, operands)[~mask])


def test_masks_of_two_operands_are_joined() -> None:
    dy = np.ma.array([1.0, 2.0, 3.0], mask=[True, False, False])
    y = np.ma.array([1.0, 1.0, 1.0], mask=[False, True, False])
    assert_array_equal(fastrelu.relu_backward(dy, y).mask, [True, True, False])


class Unit(np.ndarray):
    """A subclass with an attribute that its results take over."""

    unit: str | None = None

    def __array_finalize__(self, other: Any) -> None:
        self.unit = getattr(other, "unit", None)


@ALL
def test_subclass_goes_through_its_hooks(case: Case) -> None:
    operands = [a.view(Unit) for a in data(case)]
    for a in operands:
        a.unit = "mV"
    result = call(case, operands)
    assert (type(result), result.unit) == (Unit, "mV")
    assert type(call(case, operands, subok=False)) is np.ndarray


class Recorder:
    """Takes every ufunc that it meets and returns what it was called with."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        return ufunc, method, inputs, keywords


@ALL
def test_object_with_array_ufunc_gets_the_ufunc(case: Case) -> None:
    for position in range(len(case.data)):
        operands: list[Any] = data(case)
        operands[position] = recorder = Recorder()
        ufunc, method, inputs, keywords = call(case, operands, where=True)
        assert ufunc is getattr(ufuncs, case.name)
        assert method == "__call__"
        assert inputs[position] is recorder
        assert len(inputs) == ufunc.nin
        assert inputs[len(case.data) :] == (case.parameters or ((0,) if case.name == "relu_derivative" else ()))
        assert keywords == {"where": True}


@ALL
def test_array_ufunc_of_the_output_counts(case: Case) -> None:
    out = Recorder()
    ufunc, _, _, keywords = call(case, data(case), out=out)
    assert ufunc is getattr(ufuncs, case.name)
    assert keywords["out"] == (out,)


class Opaque:
    """Wants no ufunc at all."""

    __array_ufunc__ = None


@ALL
def test_array_ufunc_none_is_a_type_error(case: Case) -> None:
    for position in range(len(case.data)):
        operands: list[Any] = data(case)
        operands[position] = Opaque()
        with pytest.raises(TypeError, match="does not support ufuncs"):
            call(case, operands)


class Refuser:
    """Declines each ufunc in the way that the protocol asks for."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


@ALL
def test_array_ufunc_not_implemented_is_a_type_error(case: Case) -> None:
    with pytest.raises(TypeError, match="NotImplemented"):
        call(case, [Refuser()] * len(case.data))


@ALL
def test_error_raised_in_array_ufunc_is_shown(case: Case) -> None:
    class Failing:
        def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
            raise TypeError("from the other library")

    with pytest.raises(TypeError, match=r"^from the other library$"):
        call(case, [Failing()] * len(case.data))


class Convertible:
    """No array, but something that becomes one."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([-1.0, 2.0], dtype)


@ALL
def test_object_that_becomes_an_array(case: Case) -> None:
    plain = call(case, [np.array([-1.0, 2.0])] * len(case.data))
    assert_array_equal(call(case, [Convertible()] * len(case.data)), plain, strict=True)


@ALL
def test_memoryview(case: Case) -> None:
    operands = data(case)
    assert_array_equal(call(case, [memoryview(a) for a in operands]), call(case, operands), strict=True)


@pytest.mark.parametrize("library", ["pandas", "xarray"])
def test_prelu_backward_gives_dx_as_it_came(library: str) -> None:
    labelled = getattr(pytest.importorskip(library), {"pandas": "DataFrame", "xarray": "DataArray"}[library])
    dy, x, alpha = np.ones((2, 3)), np.array([[-1.0, 2, -3], [4, -5, 6]]), np.array([0.5, 0.25, 0.1])
    dx, dalpha = fastrelu.prelu_backward(labelled(dy), labelled(x), alpha)
    assert type(dx) is labelled
    assert_array_equal(dx, fastrelu.prelu_backward(dy, x, alpha)[0])
    assert_array_equal(dalpha, fastrelu.prelu_backward(dy, x, alpha)[1])


def test_masked_elements_have_no_part_in_the_gradient_of_alpha() -> None:
    x, alpha = np.ma.array([[-1.0, -2.0], [-3.0, -4.0]], mask=[[False, True], [False, False]]), np.array([0.5, 0.25])
    dx, dalpha = fastrelu.prelu_backward(np.ones((2, 2)), x, alpha)
    assert_array_equal(dx.mask, x.mask)
    assert_array_equal(dalpha, [-4.0, -4.0])
