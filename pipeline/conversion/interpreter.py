"""Runs a LiteRT file, without TensorFlow."""

import numpy as np

from pipeline.system import stderr
from pipeline.training.cifar10 import IMAGE_SHAPE, NUM_CLASSES


class LiteRTModel:
    """A LiteRT file from one uint8 image to probabilities; those of a quantized file are multiples of 1/256.

    Args:
        content: of the file.
        threads: at most so many work on one image.

    Raises:
        ValueError: the content is no such file; of one line.
    """

    def __init__(self, content: bytes, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        try:
            with stderr.filtered(lambda line: line.startswith("INFO: ")):
                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(" ".join(str(error).split())[:200]) from None
        (image,), (classes,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        received = (image["dtype"], *image["shape"], *classes["shape"])
        if received != (np.uint8, 1, *IMAGE_SHAPE, 1, NUM_CLASSES):
            raise ValueError(f"it maps {image['shape']} {image['dtype'].__name__} to {classes['shape']}")
        self._image, self._classes = image["index"], classes["index"]
        scale, self._zero_point = classes["quantization"]
        self._scale = scale or 1.0  # 0: not quantized

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [10], of an image, uint8 [32, 32, 3]."""
        self._interpreter.set_tensor(self._image, image[None])
        self._interpreter.invoke()
        return (self._interpreter.get_tensor(self._classes)[0].astype(np.float64) - self._zero_point) * self._scale

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [n, 10], of images, uint8 [n, 32, 32, 3]."""
        return np.stack([self(image) for image in images])
