"""The README's table of types of arrays: each row with the real package, and no row without a test."""

import array
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu import nn

X = np.array([[-1.0, 2.0, 3.0], [4.0, -5.0, 6.0]], np.float32)
V = np.array([-1.0, 2.0, 4.0], np.float32)
W = np.array([[1.0, -2.0], [0.5, 1.0], [0.25, 1.0]], np.float32)
LABELS = np.array([0, 2])


class Exporter:
    """An object with only DLPack."""

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.numbers.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.numbers.__dlpack_device__()


def library(name: str) -> Any:
    pytest.importorskip(name.partition(".")[0])
    return import_module(name)


def labelled(a: np.ndarray) -> Any:
    return library("xarray").DataArray(a, dims=["a", "b", "c", "d"][: a.ndim], name="signal")


def bytes_of(a: np.ndarray) -> bytearray:
    return bytearray(np.abs(a).astype(np.uint8).tobytes())


# By the first word of a row: how it is made, and back again; and whether it has one axis only.
MAKERS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[Any], Any], bool]] = {
    "list": (np.ndarray.tolist, np.asarray, False),
    "memoryview": (memoryview, np.asarray, False),
    "array.array": (lambda a: array.array("f", a), np.asarray, True),
    "bytearray": (bytes_of, np.asarray, True),
    "numpy.ma.MaskedArray": (lambda a: np.ma.array(a, mask=a == 6), np.asarray, False),
    "pandas.Series": (lambda a: library("pandas").Series(a, index=list("abc")), np.asarray, True),
    "pandas.DataFrame": (lambda a: library("pandas").DataFrame(a, columns=list("abc")), np.asarray, False),
    "xarray.DataArray": (labelled, np.asarray, False),
    "dask.array.Array": (lambda a: library("dask.array").from_array(a), np.asarray, False),
    "sparse.COO": (lambda a: library("sparse").COO.from_numpy(a), lambda r: r.todense(), False),
    "scipy.sparse.csr_array": (lambda a: library("scipy.sparse").csr_array(a), np.asarray, False),
    "pint.Quantity": (lambda a: library("pint").Quantity(a, "mV"), lambda r: r.magnitude, False),
    "astropy.units.Quantity": (lambda a: library("astropy.units").Quantity(a, "mV"), lambda r: r.value, False),
    "polars.Series": (lambda a: library("polars").Series(a), np.asarray, True),
    "polars.DataFrame": (lambda a: library("polars").DataFrame(a), np.asarray, False),
    "torch.Tensor": (lambda a: library("torch").from_numpy(a), np.asarray, False),
    "jax.Array": (lambda a: library("jax.numpy").asarray(a), np.asarray, False),
    "__dlpack__": (Exporter, np.asarray, False),
}


def image(a: Any) -> Any:
    """As (N, C, H, W), for what has such a shape."""
    return a.reshape(1, 1, 2, 3)


KERNEL = np.ones((1, 1, 1, 2), np.float32)
DY, Y = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)


def elementwise(make: Callable[[np.ndarray], Any], x: np.ndarray) -> list[tuple[Any, Any]]:
    calls = [(fastrelu.relu, 1), (fastrelu.relu_backward, 2)]
    return [(f(*[make(x)] * count), f(*[x] * count)) for f, count in calls]


def linear(make: Callable[[np.ndarray], Any], x: np.ndarray) -> list[tuple[Any, Any]]:
    return [(fastrelu.linear_relu(make(x), W), fastrelu.linear_relu(x, W))]


def linear_backward(make: Callable[[np.ndarray], Any], x: np.ndarray) -> list[tuple[Any, Any]]:
    dy, y = (DY, Y) if x.ndim == 2 else (DY[0], Y[0])
    pairs = zip(fastrelu.linear_relu_backward(dy, y, make(x), W), fastrelu.linear_relu_backward(dy, y, x, W), strict=True)
    return [*pairs]


def convolution(make: Callable[[np.ndarray], Any], x: np.ndarray) -> list[tuple[Any, Any]]:
    return [(fastrelu.conv2d(make(image(x)), KERNEL), fastrelu.conv2d(image(x), KERNEL))]


def others(make: Callable[[np.ndarray], Any], x: np.ndarray) -> list[tuple[Any, Any]]:
    layer, labels = nn.Linear(3, 2, rng=0), LABELS if x.ndim == 2 else LABELS[1]
    results = [(fastrelu.softmax_cross_entropy(make(x), labels)[1], fastrelu.softmax_cross_entropy(x, labels)[1])]
    results.append((layer(make(x)), layer(x)))
    if x.ndim == 2:
        results.append((fastrelu.embedding_mean([[0, 1]], make(x)), fastrelu.embedding_mean([[0, 1]], x)))
    return results


COLUMNS = (elementwise, linear, linear_backward, convolution, others)


def table() -> dict[str, list[str]]:
    """The cells of the README's table, by the first name in code of each row."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text.partition("### Types of arrays\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return {found[1]: [cell.strip() for cell in cells] for first, *cells in rows if (found := re.search("`(.+?)`", first))}


def test_every_row_has_a_test() -> None:
    assert table().keys() == MAKERS.keys()
    assert {len(cells) for cells in table().values()} == {len(COLUMNS)}


@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=[function.__name__ for function in COLUMNS])
@pytest.mark.parametrize("row", MAKERS)
def test_what_comes_back(row: str, column: int) -> None:
    cell, call = table()[row][column], COLUMNS[column]
    make, back, is_vector = MAKERS[row]
    x = V if is_vector else X
    x = {"bytearray": np.abs(x).astype(np.uint8), "list": x.astype(np.float64)}.get(row, x)
    if cell == "":
        assert is_vector or make is MAKERS["pandas.DataFrame"][0] or row in ("polars.DataFrame", "scipy.sparse.csr_array")
        return
    if cell == "refused":
        # What sparse and xarray say themselves names the way as well; pandas and polars name what does not fit.
        with pytest.raises(
            (TypeError, ValueError, NotImplementedError, RuntimeError),
            match=r"must be|todense|apply_ufunc|[Ss]hape|only ufuncs",
        ):
            call(make, x)
        return
    expected_type = re.match("`(.+?)`", cell)[1]
    for result, plain in call(make, x):
        assert type(result).__name__ == expected_type
        shown = back(result) if expected_type != "ndarray" else result
        assert_array_equal(shown, np.asarray(plain))
        if row == "dask.array.Array" and "lazy" in cell:
            assert hasattr(result, "compute")


# Units.


@pytest.fixture(params=["pint", "astropy"])
def quantity(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a quantity from a number and a unit."""
    if request.param == "pint":
        return library("pint").UnitRegistry().Quantity
    return library("astropy.units").Quantity


def same(result: Any, expected: Any) -> None:
    """Of one unit, and equal."""
    units = [getattr(q, "units", None) or getattr(q, "unit", None) for q in (result, expected)]
    assert units[0] == units[1]
    numbers = [getattr(q, "magnitude", None) if hasattr(q, "magnitude") else q.value for q in (result, expected)]
    assert_array_equal(*numbers)


def test_relu_keeps_the_unit(quantity: Callable[..., Any]) -> None:
    x = quantity(X, "m")
    same(fastrelu.relu(x), quantity(fastrelu.relu(X), "m"))
    same(fastrelu.leaky_relu(x, 0.5), quantity(fastrelu.leaky_relu(X, 0.5), "m"))
    same(fastrelu.prelu(x, np.float32(0.25)), quantity(fastrelu.prelu(X, np.float32(0.25)), "m"))
    same(fastrelu.relu(x[0, 0]), quantity(np.float32(0), "m"))


def test_gradient_has_the_unit_of_dy(quantity: Callable[..., Any]) -> None:
    same(fastrelu.relu_backward(quantity(X, "s"), quantity(X, "m")), quantity(fastrelu.relu_backward(X, X), "s"))
    same(fastrelu.relu_backward(X, quantity(X, "m")), quantity(fastrelu.relu_backward(X, X), ""))
    same(fastrelu.sigmoid_backward(quantity(X, "s"), X), quantity(fastrelu.sigmoid_backward(X, X), "s"))


def test_exponentials_want_no_dimension(quantity: Callable[..., Any]) -> None:
    for f in (fastrelu.sigmoid, fastrelu.tanh, fastrelu.elu, fastrelu.softplus):
        with pytest.raises(TypeError, match=f"^{f.__name__}: x must be without dimension, not in m"):
            f(quantity(X, "m"))
        same(f(quantity(X, "")), quantity(f(X), ""))
        same(f(quantity(X.astype(float), "km/m")), quantity(f(1000 * X.astype(float)), ""))


def test_alpha_is_a_number(quantity: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"^leaky_relu: alpha must be without dimension, not in s"):
        fastrelu.leaky_relu(quantity(X, "m"), quantity(0.5, "s"))


def test_products_have_the_product_of_the_units(quantity: Callable[..., Any]) -> None:
    x, w, b = quantity(X, "m"), quantity(W, "s"), np.array([1.0, 2.0])
    same(fastrelu.linear_relu(x, w), quantity(fastrelu.linear_relu(X, W), "m s"))
    same(fastrelu.linear_relu(x, w, quantity(b, "km s")), quantity(fastrelu.linear_relu(X, W, 1000 * b), "m s"))
    same(fastrelu.linear(X, W, quantity(b, "")), quantity(fastrelu.linear(X, W, b), ""))
    with pytest.raises(TypeError, match=r"^linear_relu: b must be in a unit of the dimension of .*, not in"):
        fastrelu.linear_relu(x, w, b)
    with pytest.raises(TypeError, match=r"^linear_relu: b must be in a unit of the dimension of .*, not in"):
        fastrelu.linear_relu(x, w, library("torch").ones(2))
    with pytest.raises(TypeError, match=r"^linear_sigmoid: x must be without dimension, not in m"):
        fastrelu.linear_sigmoid(x, W)


def test_quantities_are_of_one_library() -> None:
    x, w = library("pint").Quantity(X, "m"), library("astropy.units").Quantity(W, "s")
    with pytest.raises(TypeError, match=r"^linear_relu: w must be a Quantity of pint as x, not of astropy"):
        fastrelu.linear_relu(x, w)


def test_units_are_never_dropped(quantity: Callable[..., Any]) -> None:
    x = quantity(X, "m")
    calls = [
        lambda: fastrelu.max_pool2d(x.reshape(1, 2, 3), 1),
        lambda: nn.Linear(3, 2)(x),
        lambda: nn.Sequential(nn.Linear(3, 2)).predict(x),
        lambda: nn.fit(nn.Sequential(nn.Linear(3, 3)), x, LABELS, progress=False),
        lambda: fastrelu.prelu_backward(x, x, 0.5),
        lambda: fastrelu.linear_backward(np.ones((2, 2)), x, W),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="must be an array without a unit, not a Quantity in m"):
            call()
    out = np.full_like(X, 7)
    with pytest.raises(TypeError, match=r"^relu: out and mask must not be given where units are"):
        fastrelu.relu(x, out=out)
    assert (out == 7).all()
    with pytest.raises(
        TypeError, match=r"^relu: out must be an array; (pint|astropy)\.Quantity returned NotImplemented for it"
    ):
        fastrelu.relu(X, out=x)


def test_scales_without_a_zero_are_refused() -> None:
    degrees = library("pint").UnitRegistry().Quantity(X, "degC")
    with pytest.raises(TypeError, match=r"^relu: x must be in a unit that has a zero, not in degree_Celsius"):
        fastrelu.relu(degrees)
    units = library("astropy.units")
    for x, unit in ((units.Magnitude(X), "mag"), (units.Quantity(X, "deg_C"), "deg_C")):
        with pytest.raises(TypeError, match=rf"^relu: x must be in a unit that has a zero, not in {unit}"):
            fastrelu.relu(x)
    assert fastrelu.relu(units.Quantity(X, "K")).unit == "K"


# What is left: tensors, DLPack, masks, sparse arrays.


def test_tensors_share_their_memory() -> None:
    torch = library("torch")
    x = torch.from_numpy(X.copy())
    assert fastrelu.relu(x, out=x) is x
    assert_array_equal(x.numpy(), fastrelu.relu(X))
    assert fastrelu.relu(x, out=(x,)) is x
    out, mask = torch.empty(2, 2), torch.empty((2, 1), dtype=torch.uint8)
    results = fastrelu.linear_relu(x, W, out=out, mask=mask)
    assert results[0] is out
    assert results[1] is mask
    expected = fastrelu.linear_relu(x.numpy(), W, mask=np.empty((2, 1), np.uint8))
    assert_array_equal(out.numpy(), expected[0])
    assert_array_equal(mask.numpy(), expected[1])
    dw = torch.zeros(3, 2)
    gradients = fastrelu.linear_relu_backward(DY, Y, x, None, out=(None, dw, None), wanted=("dw",))
    assert gradients[1] is dw
    assert_array_equal(dw.numpy(), fastrelu.linear_relu_backward(DY, Y, fastrelu.relu(X), W)[1])
    dx, *_ = fastrelu.linear_leaky_relu_backward(DY, Y, x, W, alpha=torch.tensor(0.5))
    assert_array_equal(dx.numpy(), fastrelu.linear_leaky_relu_backward(DY, Y, x.numpy(), W, alpha=0.5)[0])
    dx, dalpha = fastrelu.prelu_backward(x, x, 0.5)
    assert type(dx) is type(dalpha) is torch.Tensor
    with pytest.raises(RuntimeError, match="requires grad"):
        fastrelu.relu(x.requires_grad_())


def test_tensors_of_bfloat16() -> None:
    torch = library("torch")
    x = torch.from_numpy(X).bfloat16()
    y = fastrelu.relu(x, out=torch.empty_like(x))
    assert y.dtype is torch.bfloat16
    assert_array_equal(y.float().numpy(), fastrelu.relu(X))
    assert_array_equal(nn.Linear(3, 2, rng=0)(x), nn.Linear(3, 2, rng=0)(X))
    with pytest.raises(
        ValueError, match=r"^linear_relu: w must have shape \(..., 3, n\) for x of shape \(2, 3\), not \(2, 2\)"
    ):
        fastrelu.linear_relu(x, x[:, :2])
    with pytest.raises(RuntimeError, match="requires grad"):
        fastrelu.relu(x.requires_grad_())


def test_errors_of_what_speaks_dlpack_are_about_its_array() -> None:
    with pytest.raises(
        ValueError, match=r"^linear_relu: w must have shape \(..., 3, n\) for x of shape \(2, 3\), not \(2, 2\)"
    ):
        fastrelu.linear_relu(Exporter(X), W[:2])


@pytest.mark.parametrize("masked", ["numpy", "astropy"])
def test_masks_are_never_dropped(masked: str) -> None:
    x = np.ma.array(X, mask=X == 6) if masked == "numpy" else library("astropy.utils.masked").Masked(X, mask=X == 6)
    calls = [
        lambda: fastrelu.softmax_cross_entropy(x, LABELS),
        lambda: nn.Linear(3, 2)(x),
        lambda: nn.fit(nn.Sequential(nn.Linear(3, 3)), x, LABELS, progress=False),
        lambda: fastrelu.max_pool2d(x[None], 1),
    ]
    if masked == "numpy":  # astropy's goes through them with the right mask
        calls += [lambda: fastrelu.linear_relu(x, np.eye(3)), lambda: fastrelu.linear_backward(x, X, np.eye(3))]
    for call in calls:
        with pytest.raises(TypeError, match=r"must be an array without a mask, not a Masked\w+: call its filled\(\) first"):
            call()


# Labels of pandas.


def test_product_of_a_frame_has_the_labels_of_matmul() -> None:
    pd = library("pandas")
    x, w = pd.DataFrame(X, ["r", "s"], list("abc")), pd.DataFrame(W, list("abc"), ["u", "v"])
    row, b = x.loc["s"], pd.Series([1.0, 2.0], w.columns)
    for left, right in ((x, W), (x, np.eye(3)), (x, w), (X, w), (row, w)):
        result, expected = fastrelu.linear(left, right), left @ right
        kind = pd.testing.assert_frame_equal if expected.ndim == 2 else pd.testing.assert_series_equal
        kind(result, expected, check_dtype=False)
    assert type(fastrelu.linear(row, W)) is type(row @ W) is np.ndarray
    pd.testing.assert_frame_equal(fastrelu.linear(x, w, b), x @ w + b)
    y, mask = np.empty((2, 2), np.float32), np.empty((2, 1), np.uint8)
    assert fastrelu.linear_relu(x, w, out=y) is y
    assert fastrelu.linear_relu(x, w, mask=mask)[1] is mask


def test_labels_that_do_not_meet_are_refused() -> None:
    pd = library("pandas")
    x, w = pd.DataFrame(X, columns=list("abc")), pd.DataFrame(W, list("abc"), ["u", "v"])
    for left in (x[["b", "a", "c"]], pd.DataFrame(X), x.loc[0, ["b", "a", "c"]]):
        with pytest.raises(ValueError, match=r"^linear_relu: x must have the labels of the rows of w in their order"):
            fastrelu.linear_relu(left, w)
    with pytest.raises(ValueError, match=r"^linear_relu: b must have the labels of the columns of w in their order"):
        fastrelu.linear_relu(x, w, pd.Series([1.0, 2.0], ["v", "u"]))
    with pytest.raises(TypeError, match=r"^linear_relu: out must be an array, not DataFrame"):
        fastrelu.linear_relu(X, W, out=pd.DataFrame(np.ones((2, 2), np.float32)))
    with pytest.raises(TypeError, match=r"^linear_relu_backward: out must be an array, not DataFrame"):
        fastrelu.linear_relu_backward(DY, Y, X, W, out=(None, w, None))


def test_sparse_arrays_calculate_what_is_not_stored() -> None:
    sparse = library("sparse")
    a = np.array([[0.0, -1.0], [2.0, 0.0]])
    assert_array_equal(fastrelu.sigmoid(sparse.COO.from_numpy(a)).todense(), fastrelu.sigmoid(a))
    assert fastrelu.relu(sparse.COO.from_numpy(a)).nnz == 1


def test_sparse_matrices_are_told_what_to_do() -> None:
    for kind in ("csr_array", "csr_matrix", "coo_array"):
        x = getattr(library("scipy.sparse"), kind)(X)
        for call in (fastrelu.relu, lambda x: fastrelu.linear_relu(x, W), nn.Sequential(nn.Linear(3, 2)).predict):
            with pytest.raises(TypeError, match=rf"x must be a dense array, not a {kind}: call its toarray\(\) first"):
                call(x)
