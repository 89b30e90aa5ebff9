"""The classifier for scikit-learn."""

import pickle
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.subprocesses import run

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fastrelu.nn import MLPClassifier


def test_scikit_learn_accepts_it():
    check_estimator(MLPClassifier(max_iter=50), on_skip=None)


def test_it_works_in_a_pipeline():
    X, y = load_iris(return_X_y=True)
    classifier = MLPClassifier((32,), learning_rate_init=0.01, max_iter=60, random_state=0)
    assert cross_val_score(make_pipeline(StandardScaler(), classifier), X, y, cv=3).mean() > 0.9


@pytest.mark.parametrize(
    "options", [{"solver": "sgd", "learning_rate_init": 0.1}, {"activation": "tanh"}, {"hidden_layer_sizes": ()}]
)
def test_options(options):
    X = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    y = np.where(X[:, 0] > X[:, 1], "yes", "no")
    classifier = MLPClassifier(**{"random_state": 0, "learning_rate_init": 0.02, **options}).fit(X, y)
    assert classifier.score(X, y) > 0.95
    assert classifier.predict_proba(X).dtype == np.float32
    assert classifier.n_iter_ == len(classifier.loss_curve_)


def test_training_ends_when_nothing_gets_better():
    X, y = load_iris(return_X_y=True)
    assert MLPClassifier(tol=1.0, n_iter_no_change=3).fit(X, y).n_iter_ == 4


def test_penalty_makes_weights_smaller():
    X, y = load_iris(return_X_y=True)

    def weight(alpha):
        classifier = MLPClassifier(alpha=alpha, random_state=0, max_iter=100, learning_rate_init=0.01)
        return np.abs(classifier.fit(X, y).model_.parameters["0.weight"]).sum()

    assert weight(100.0) < weight(0.0) / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "lbfgs"}, "solver must be adam or sgd, not 'lbfgs'"),
        ({"activation": "step"}, "activation must be one of relu, .*, not 'step'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"max_iter": 0}, "max_iter must be at least 1, not 0"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be at least 1, not 0"),
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be at least 1, not 0"),
        ({"alpha": -1}, "alpha must be finite and at least 0, not -1"),
        ({"tol": -1.0}, r"tol must be finite and at least 0, not -1\.0"),
        ({"learning_rate_init": -1}, "learning_rate_init must be finite and at least 0, not -1"),
        ({"momentum": 2}, "momentum must be at least 0 and below 1, not 2"),
    ],
)
def test_option_out_of_range(options, words):
    with pytest.raises(ValueError, match=f"^MLPClassifier: {words}"):
        MLPClassifier(**options).fit([[0.0], [1.0]], [0, 1])


def test_epochs_of_partial_fit_are_those_of_fit():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"], object)[y]
    options = {"hidden_layer_sizes": (8,), "random_state": 0}
    whole = MLPClassifier(max_iter=3, **options).fit(X, names)
    parts = MLPClassifier(**options)
    for _ in range(3):
        parts.partial_fit(X, names, classes=whole.classes_[::-1])
    assert_array_equal(parts.predict_proba(X), whole.predict_proba(X))
    assert (parts.loss_curve_, parts.n_iter_) == (whole.loss_curve_, 3)
    assert_array_equal(whole.partial_fit(X[:1], names[:1]).classes_, parts.classes_)  # and a fit can go on


def test_partial_fit_wants_the_classes_first():
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        MLPClassifier().partial_fit([[0.0], [1.0]], [0, 1])
    classifier = MLPClassifier().partial_fit([[0.0], [1.0]], [0, 1], classes=[0, 1])
    with pytest.raises(ValueError, match=r"^MLPClassifier: y must be among the classes of the first call, not .*2"):
        classifier.partial_fit([[0.0]], [2])


def test_sparse_rows_are_told_what_to_do():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"Sparse data was passed for X, .*toarray\(\)"):
        MLPClassifier().fit(sparse.csr_array(np.eye(2)), [0, 1])


def test_predict_needs_a_fit():
    with pytest.raises(NotFittedError):
        MLPClassifier().predict([[0.0]])


def test_the_package_does_not_need_scikit_learn():
    run("import sys; sys.modules['sklearn'] = None\nfrom fastrelu.nn import *\nfrom fastrelu import nn\nnn.Linear(2, 1)")


def test_without_scikit_learn_one_sentence_tells_what_to_do():
    code = """
import sys
sys.modules["sklearn.base"] = None
try:
    from fastrelu.nn import MLPClassifier
except ImportError as error:
    print(error)
"""
    assert run(code) == 'MLPClassifier needs scikit-learn: pip install "fastrelu[sklearn]"\n'


def test_function_transformer_keeps_the_labels_of_a_dataframe():
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame({"a": [-1.0, 2.0], "b": [3.0, -4.0]}, index=["first", "second"])
    for function in (fastrelu.relu, fastrelu.ufuncs.relu):
        transformer = FunctionTransformer(function, feature_names_out="one-to-one").set_output(transform="pandas")
        for same in (transformer, clone(transformer), pickle.loads(pickle.dumps(transformer))):
            pd.testing.assert_frame_equal(same.fit_transform(X), X.clip(lower=0))


def test_function_transformer_with_an_inverse():
    transformer = FunctionTransformer(
        fastrelu.leaky_relu, fastrelu.leaky_relu, kw_args={"alpha": 0.25}, inv_kw_args={"alpha": 4}
    )
    X = np.linspace(-2, 2, 9)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns if it is none
        assert_array_equal(transformer.inverse_transform(transformer.fit_transform(X)), X)


def test_it_follows_transformers_of_columns_and_is_the_same_after_clone_and_pickle():
    pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    columns = make_column_transformer(
        (FunctionTransformer(fastrelu.relu, feature_names_out="one-to-one"), ["sepal width (cm)"]),
        (StandardScaler(), ["petal length (cm)", "petal width (cm)"]),
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    classifier = MLPClassifier((16,), learning_rate_init=0.02, max_iter=40, random_state=0)
    pipeline = make_pipeline(columns, classifier).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    assert [*pipeline[-1].feature_names_in_] == ["sepal width (cm)", "petal length (cm)", "petal width (cm)"]
    probabilities = pipeline.predict_proba(X)
    for same in (clone(pipeline).fit(X, y), pickle.loads(pickle.dumps(pipeline))):
        assert_array_equal(same.predict_proba(X), probabilities)
    with pytest.raises(ValueError, match="feature names should match"):
        pipeline[-1].predict(X)


def test_grid_search_in_two_processes_finds_what_one_finds():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(learning_rate_init=0.02, max_iter=15, random_state=0))
    grid = {"mlpclassifier__hidden_layer_sizes": [(4,), (16,)]}
    one, two = (GridSearchCV(pipeline, grid, cv=2, n_jobs=n).fit(X, y) for n in (1, 2))
    assert_array_equal(two.cv_results_["mean_test_score"], one.cv_results_["mean_test_score"])
    assert_array_equal(two.predict_proba(X), one.predict_proba(X))
    assert two.best_params_ == {"mlpclassifier__hidden_layer_sizes": (16,)}
