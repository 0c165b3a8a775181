"""The registered model: images as base64 in, classes and probabilities out.

MLflow keeps a copy of this file and of what it imports with the model, and runs that: it needs neither the repository
nor TensorFlow.
"""

import base64
import threading
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pipeline.conversion.interpreter import LiteRTModel
from pipeline.images import reader
from pipeline.images.reader import ImageError
from pipeline.training.cifar10 import CLASS_NAMES

NO_BASE64 = "it is not base64: encode the image file, for example with `base64 -w0 photo.png`"


class PhotoClassifier(PythonModel):
    """Reads images as `pipeline.predict` does: whatever Pillow opens, cropped to the middle square."""

    def load_context(self, context: Any) -> None:
        """Loads the LiteRT file."""
        with open(context.artifacts["litert"], "rb") as file:
            self._model = LiteRTModel(file.read(), threads=1)
        self._one_at_a_time = threading.Lock()  # an interpreter serves one caller; a huge image takes 0.5 GB

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[dict[str, Any]]:
        """Of each row's image, the most probable class, its probability, and those of all classes.

        Raises:
            MlflowException: an image cannot be read. The whole request is refused, in one line that names its row.
        """
        with self._one_at_a_time:
            return [self._row(number, text) for number, text in enumerate(model_input["image"], 1)]

    def _row(self, number: int, text: Any) -> dict[str, Any]:
        try:
            probabilities = self._model(reader.pixels(reader.open_photo(_decoded(text))))
        except ImageError as error:
            raise MlflowException.invalid_parameter_value(f"image {number}: {error}") from None
        named = dict(zip(CLASS_NAMES, probabilities.round(6).tolist(), strict=True))
        best = max(named, key=named.__getitem__)
        return {"class": best, "probability": named[best], "probabilities": named}


def _decoded(text: Any) -> bytes:
    try:
        text = text.decode("ascii") if isinstance(text, bytes) else text  # as `base64.b64encode` gives it
        return base64.b64decode("".join(text.split()), validate=True)  # `base64` breaks its lines
    except (AttributeError, TypeError, ValueError):
        raise ImageError(NO_BASE64) from None


set_model(PhotoClassifier())
