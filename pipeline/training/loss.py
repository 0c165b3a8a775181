"""What training minimizes."""

import keras
import tensorflow as tf

from pipeline.training.cifar10 import NUM_CLASSES


def cross_entropy(labels: tf.Tensor, outputs: tf.Tensor, label_smoothing: float, from_logits: bool) -> tf.Tensor:
    """Cross-entropy in nats, float32 [n].

    Args:
        labels: int32 [n].
        outputs: float32 [n, 10], logits or probabilities.
        label_smoothing: share of the target probability that is spread evenly over all classes, 0..1.
        from_logits: which of the two `outputs` are.
    """
    targets = tf.one_hot(labels, NUM_CLASSES)
    targets = targets * (1 - label_smoothing) + label_smoothing / NUM_CLASSES
    if from_logits:
        return tf.nn.softmax_cross_entropy_with_logits(targets, outputs)
    return keras.losses.categorical_crossentropy(targets, outputs)


def additional_loss(model: keras.Model) -> tf.Tensor | float:
    """What regularizers, activity regularizers and `add_loss` bring, of the last call of `model`; float32.

    Keras adds it to `loss` and `val_loss`, in training and in what it reports; so does the loop.
    """
    losses = model.losses
    return tf.add_n([tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses]) if losses else 0.0
