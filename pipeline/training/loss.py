"""What training minimizes."""

import tensorflow as tf

from pipeline.training.cifar10 import NUM_CLASSES


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Softmax cross-entropy in nats, float32 [n].

    Args:
        labels: int32 [n].
        logits: float32 [n, 10].
        label_smoothing: share of the target probability that is spread evenly over all classes, 0..1.
    """
    targets = tf.one_hot(labels, NUM_CLASSES)
    targets = targets * (1 - label_smoothing) + label_smoothing / NUM_CLASSES
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
