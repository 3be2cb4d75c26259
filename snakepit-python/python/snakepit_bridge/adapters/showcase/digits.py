"""Trains a classifier on scikit-learn's handwritten digits. Imports scikit-learn and numpy on first use."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Labels = NDArray[np.int64]

#: A fixed seed, so that predictions never use images from the training set.
_SEED = 20
#: The fraction of the images that training does not use.
_HELD_OUT_FRACTION = 0.25
#: The number of images per training step.
_BATCH_SIZE = 64
#: The largest pixel value of an image.
_MAX_PIXEL = 16.0


@dataclass(frozen=True)
class Model:
    """A linear classifier, serialized as plain arrays so that loading it needs no unpickling."""

    weights: Matrix
    bias: Matrix
    classes: Labels

    def predict(self, images: Matrix) -> Labels:
        """Return the most likely class of each image."""
        scores = images @ self.weights.T + self.bias
        predicted: Labels = self.classes[scores.argmax(axis=1)]
        return predicted

    def to_bytes(self) -> bytes:
        """Serialize the model in numpy's format."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, weights=self.weights, bias=self.bias, classes=self.classes)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """Deserialize a model. Rejects pickled content."""
        import numpy as np

        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], arrays["classes"])


class Training:
    """A classifier during training, one batch of images per step."""

    def __init__(self, epochs: int) -> None:
        import numpy as np
        from sklearn.linear_model import SGDClassifier

        if epochs < 1:
            raise ValueError(f"epochs is {epochs}; train for at least one")
        self._train, self._held_out = _split()
        self._order = np.random.default_rng(_SEED)
        self._batches: list[Labels] = []
        self._classifier = SGDClassifier(loss="log_loss", alpha=1e-4, average=True, random_state=_SEED)
        per_epoch = -(-len(self._train[1]) // _BATCH_SIZE)
        #: The total number of steps.
        self.steps = epochs * per_epoch
        #: The classes.
        self.classes: list[int] = np.unique(self._train[1]).tolist()

    def step(self) -> dict[str, float]:
        """Train on one batch. Return loss and accuracy on the held-out images."""
        import numpy as np
        from sklearn.metrics import log_loss

        images, labels = self._train
        if not self._batches:
            order = self._order.permutation(len(labels))
            self._batches = np.array_split(order, -(-len(labels) // _BATCH_SIZE))
        batch = self._batches.pop()
        self._classifier.partial_fit(images[batch], labels[batch], classes=self.classes)
        held_out_images, held_out_labels = self._held_out
        probabilities = self._classifier.predict_proba(held_out_images)
        correct = self.model.predict(held_out_images) == held_out_labels
        loss = log_loss(held_out_labels, probabilities, labels=self.classes)
        return {"loss": float(loss), "accuracy": float(correct.mean())}

    @property
    def model(self) -> Model:
        """The current model."""
        classifier = self._classifier
        return Model(classifier.coef_, classifier.intercept_, classifier.classes_)


def info() -> dict[str, Any]:
    """Return the sizes of both sets."""
    train, held_out = _split()
    return {
        "train": len(train[1]),
        "held_out": len(held_out[1]),
        "pixels": int(train[0].shape[1]),
        "classes": len(set(train[1].tolist())),
    }


def predict(model: Model, start: int, count: int) -> tuple[list[int], list[int]]:
    """Predict a slice of the held-out images. Return the predictions and the true labels."""
    images, labels = _split()[1]
    if start < 0 or count < 1 or start + count > len(labels):
        raise ValueError(
            f"images {start} to {start + count - 1} do not exist; {len(labels)} are held out, numbered from 0"
        )
    indices = slice(start, start + count)
    return model.predict(images[indices]).tolist(), labels[indices].tolist()


def _split() -> tuple[tuple[Matrix, Labels], tuple[Matrix, Labels]]:
    """Load the images, scaled to [0, 1], as a training and a held-out set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images, labels = data.data / _MAX_PIXEL, data.target
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=_HELD_OUT_FRACTION, random_state=_SEED, stratify=labels
    )
    return (train_images, train_labels), (held_out_images, held_out_labels)
