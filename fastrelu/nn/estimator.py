"""A classifier for scikit-learn: ``pip install "fastrelu[sklearn]"``, and then pipelines, grid search and cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fastrelu.nn.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softplus, Tanh
from fastrelu.nn.layers import Layer, Linear
from fastrelu.nn.optimizers import SGD, Adam, _number
from fastrelu.nn.sequential import Sequential
from fastrelu.nn.training import fit
from fastrelu.operands import whole_number

__all__ = ["MLPClassifier"]

_NAME = "MLPClassifier"
_ACTIVATIONS = {
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "logistic": Sigmoid,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softplus": Softplus,
}


class MLPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A network of fully connected layers, in the terms of `sklearn.neural_network.MLPClassifier`.

    It is trained by `fastrelu.nn.fit` on the softmax cross-entropy. float32 data are calculated in float32, all others in
    float64.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, optional
        Outputs of each hidden layer.
    activation : str, optional
        "relu", "leaky_relu", "elu", "logistic" ("sigmoid"), "tanh" or "softplus".
    solver : str, optional
        "adam" or "sgd".
    alpha : float, optional
        Strength of the L2 penalty ``alpha / (2 * batch_size) * p**2`` on all parameters, biases included.
    batch_size : int or "auto", optional
        Rows for a step; "auto" is 200, or all where there are fewer.
    learning_rate_init : float, optional
        Learning rate.
    max_iter : int, optional
        Epochs at most.
    shuffle : bool, optional
        Whether each epoch has an order of its own.
    random_state : int, RandomState or None, optional
        Where the first weights and the orders come from.
    tol : float, optional
        Training ends when the loss has not become smaller by this much for `n_iter_no_change` epochs.
    verbose : bool, optional
        Whether to print the loss of each epoch.
    momentum : float, optional
        Of the solver "sgd".
    n_iter_no_change : int, optional
        See `tol`.

    Attributes
    ----------
    classes_ : ndarray
        The labels, in the order of the outputs.
    model_ : Sequential
        The network.
    loss_curve_ : list of float
        Loss of each epoch.
    n_iter_ : int
        How many epochs there were.
    n_features_in_ : int
        Columns of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import MLPClassifier
    >>> X = np.random.default_rng(0).standard_normal((200, 2))
    >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
    >>> classifier = MLPClassifier((16,), learning_rate_init=0.02, random_state=0).fit(X, y)
    >>> bool(classifier.score(X, y) > 0.9)
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.001,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        momentum: float = 0.9,
        n_iter_no_change: int = 10,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.momentum = momentum
        self.n_iter_no_change = n_iter_no_change

    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """Train a new network.

        Parameters
        ----------
        X : array_like
            (rows, features).
        y : array_like
            The class of each row.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If data or parameters are not what they should be.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"MLPClassifier: y must have at least 2 classes, not one class, {self.classes_[0]!r}")
        self._begin(X)
        patience, tol = whole_number(_NAME, "n_iter_no_change", self.n_iter_no_change, 1), _number(_NAME, "tol", self.tol)
        best, unchanged = np.inf, 0
        for _ in range(whole_number(_NAME, "max_iter", self.max_iter, 1)):
            loss = self._epoch(X, y)
            unchanged = 0 if loss < best - tol else unchanged + 1
            best = min(best, loss)
            if unchanged >= patience:
                break
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> MLPClassifier:
        """Go on training, for one epoch of these data; the first call makes a new network.

        Parameters
        ----------
        X : array_like
            (rows, features).
        y : array_like
            The class of each row.
        classes : array_like, optional
            All classes that there will be; needed in the first call.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If data, classes or parameters are not what they should be.

        Examples
        --------
        >>> import numpy as np
        >>> from fastrelu.nn import MLPClassifier
        >>> classifier = MLPClassifier((4,), random_state=0)
        >>> for X, y in (([[0.0], [1.0]], ["low", "high"]), ([[2.0]], ["high"])):
        ...     classifier = classifier.partial_fit(X, y, classes=["low", "high"])
        >>> classifier.n_iter_
        2
        """
        is_first = _check_partial_fit_first_call(self, classes)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=is_first)
        check_classification_targets(y)
        unknown = np.setdiff1d(y, self.classes_)
        if unknown.size:
            raise ValueError(f"MLPClassifier: y must be among the classes of the first call, not {unknown[0]!r}")
        if is_first:
            self._begin(X)
        self._epoch(X, y)
        return self

    def _begin(self, X: np.ndarray) -> None:
        """A new network and what trains it."""
        # A generator of its own: scikit-learn's are of another kind.
        self._rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        self._optimizer = self._new_optimizer()
        self.model_ = self._network(X.shape[1], X.dtype, self._rng)
        self.loss_curve_: list[float] = []

    def _epoch(self, X: np.ndarray, y: np.ndarray) -> float:
        rows = min(200, len(X)) if self.batch_size == "auto" else whole_number(_NAME, "batch_size", self.batch_size, 1)
        self._optimizer.weight_decay = _number(_NAME, "alpha", self.alpha) / rows
        labels, optimizer = np.searchsorted(self.classes_, y), self._optimizer
        history = fit(self.model_, X, labels, 1, rows, optimizer=optimizer, shuffle=self.shuffle, rng=self._rng, progress=False)
        (loss,) = history.loss
        self.loss_curve_.append(loss)
        self.n_iter_ = len(self.loss_curve_)
        if self.verbose:
            print(f"epoch {self.n_iter_}: loss {loss:.6f}")
        return loss

    def _new_optimizer(self) -> SGD | Adam:
        rate = _number(_NAME, "learning_rate_init", self.learning_rate_init)
        momentum = _number(_NAME, "momentum", self.momentum, below=1)
        if self.solver == "adam":
            return Adam(rate)
        if self.solver == "sgd":
            return SGD(rate, momentum)
        raise ValueError(f"MLPClassifier: solver must be adam or sgd, not {self.solver!r}")

    def _network(self, features: int, dtype: Any, rng: np.random.Generator) -> Sequential:
        if not isinstance(self.activation, str) or self.activation not in _ACTIVATIONS:
            raise ValueError(f"MLPClassifier: activation must be one of {', '.join(_ACTIVATIONS)}, not {self.activation!r}")
        hidden = self.hidden_layer_sizes
        hidden = hidden if isinstance(hidden, Sequence | np.ndarray) else (hidden,)
        widths = (features, *(whole_number(_NAME, "hidden_layer_sizes", width, 1) for width in hidden))
        layers: list[Layer | Any] = []
        for k, n in pairwise(widths):
            layers += [Linear(k, n, rng=rng, dtype=dtype), _ACTIVATIONS[self.activation]()]
        return Sequential(*layers, Linear(widths[-1], len(self.classes_), rng=rng, dtype=dtype))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array_like
            (rows, features).

        Returns
        -------
        ndarray
            (rows, classes), in the order of ``classes_``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        z = self.model_.predict(X)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]  # scikit-learn has no types

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row.

        Parameters
        ----------
        X : array_like
            (rows, features).

        Returns
        -------
        ndarray
            (rows,).
        """
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]  # type: ignore[no-any-return]  # likewise
