"""What words alone tell: TF-IDF vectors under a linear model, in a second."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from tuner.text.words import TOKEN_PATTERN

VECTORS: dict[str, Any] = {"sublinear_tf": True, "ngram_range": (1, 2), "token_pattern": TOKEN_PATTERN}


def tfidf_pairs(train: list[tuple[str, str]], held_out: list[tuple[str, str]]) -> np.ndarray:
    """Of held-out pairs of texts `(pairs,)` by how much the first is better, as logistic regression over the difference
    of their TF-IDF vectors (words and their pairs, logarithmic counts) learns it of pairs whose first text is."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(**VECTORS).fit([text for pair in train for text in pair])
    seen, unseen = (
        vectors.transform([one for one, _ in pairs]) - vectors.transform([other for _, other in pairs])
        for pairs in (train, held_out)
    )
    # Each pair both ways round, so that there are two classes.
    targets = np.repeat([1, 0], len(train))
    model = LogisticRegression(C=10, fit_intercept=False, max_iter=1000).fit(vstack([seen, -seen]), targets)
    return np.asarray(model.decision_function(unseen))


def tfidf_classes(train: Dataset, held_out: Dataset, metric: str) -> dict[str, float]:
    """The metric (`accuracy`, `f1_micro` or `rmse`) on held-out rows (`tuner.data.labels`) of the most frequent class
    or the mean, and of TF-IDF (words and their pairs, logarithmic counts) under a linear SVM (Joachims 1998), one for
    each class where several hold, or under ridge regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer
    from sklearn.svm import LinearSVC

    def texts(rows: Dataset) -> list[str]:
        return [" ".join(filter(None, pair)) for pair in zip(rows["text"], rows["text_pair"], strict=True)]

    vectors = TfidfVectorizer(**VECTORS)
    seen, unseen = vectors.fit_transform(texts(train)), vectors.transform(texts(held_out))
    model: Any
    if metric == "accuracy":
        ones, others = np.array(train["label"]), np.array(held_out["label"])
        names, counts = np.unique(ones, return_counts=True)
        model = LinearSVC(random_state=0).fit(seen, ones)
        always = float((others == names[counts.argmax()]).mean())
        return {"most frequent": always, "TF-IDF + SVM": float(accuracy_score(others, model.predict(unseen)))}
    if metric == "rmse":
        numbers, asked = np.array(train["label"]), np.array(held_out["label"])
        model = Ridge().fit(seen, numbers)
        mean = float(root_mean_squared_error(asked, np.full(len(asked), numbers.mean())))
        return {"mean": mean, "TF-IDF + ridge": float(root_mean_squared_error(asked, model.predict(unseen)))}
    table = MultiLabelBinarizer().fit(train["labels"])
    several, wanted = table.transform(train["labels"]), table.transform(held_out["labels"])
    model = OneVsRestClassifier(LinearSVC(random_state=0)).fit(seen, several)
    always = float(f1_score(wanted, np.tile(several.mean(axis=0) > 0.5, (len(wanted), 1)), average="micro"))
    return {
        "most frequent": always,
        "TF-IDF + SVM": float(f1_score(wanted, model.predict(unseen), average="micro", zero_division=0)),
    }
