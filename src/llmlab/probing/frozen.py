"""Logistic regression on frozen features, by scikit-learn, and the baselines that a probe is read beside."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.errors import UserError
from llmlab.probing.scores import Split

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Inverse strengths of the L2 penalty that are tried, in the order of scikit-learn's own LogisticRegressionCV.
STRENGTHS = tuple(10.0**k for k in range(-4, 3))
FOLDS, ITERATIONS = 3, 1000


def check_installed() -> None:
    """UserError where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError(
            "mode=frozen needs scikit-learn: pip install 'llmlab[probe]'; mode=finetune works without"
        ) from None


def accuracy(features: np.ndarray | csr_matrix, classes: np.ndarray, part: Split) -> float:
    """Accuracy on the test texts of a logistic regression on the training texts, features (texts, D).

    The strength of its penalty is the best of `STRENGTHS` in a cross-validation on the training texts, or 1 where these are so
    few that a fold would leave one class. Dense features are
    standardised by the training texts, within each fold by its own.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = features[part.train], classes[part.train]
    # With another strategy a class that has fewer texts than there are folds is an error or a warning of scikit-learn.
    fewest = int(np.bincount(y)[np.unique(y)].min())
    folds: Any = (
        StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        if fewest >= FOLDS
        else KFold(min(FOLDS, len(y)), shuffle=True, random_state=0)
    )
    classifier = LogisticRegression(max_iter=ITERATIONS)
    steps = [StandardScaler(), classifier] if isinstance(features, np.ndarray) else [classifier]
    model: Any = make_pipeline(*steps)
    # scikit-learn fits no single class, and would choose a strength by nothing but NaN.
    if all(len(np.unique(y[train])) > 1 for train, _ in folds.split(x, y)):
        model = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=folds)
    with warnings.catch_warnings():
        # The weakest penalties may not converge, and are then just other candidates.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A fold of few texts may lack a class.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(x, y)
    return float((model.predict(features[part.test]) == classes[part.test]).mean())


def majority(classes: np.ndarray, part: Split) -> float:
    """Accuracy of the class that is the most frequent among the training texts."""
    return float((classes[part.test] == np.bincount(classes[part.train]).argmax()).mean())


def bag_of_tokens(ids: Sequence[np.ndarray], part: Split) -> csr_matrix:
    """(texts, ids that occur) tf-idf of the tokens that the model reads, the documents counted in the training texts alone.

    1 + ln of a token's number times ln((1 + n) / (1 + df)) + 1, each text of length 1, as scikit-learn's TfidfTransformer
    with sublinear_tf.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    rows = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    counts = csr_matrix((np.ones(len(rows)), (rows, np.concatenate(ids))))
    return TfidfTransformer(sublinear_tf=True).fit(counts[part.train]).transform(counts).tocsr()
