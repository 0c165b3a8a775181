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


def logits_of(outputs: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """Logits [n, 10] of outputs that may be probabilities; float32."""
    outputs = tf.cast(outputs, tf.float32)
    return outputs if from_logits else tf.math.log(tf.maximum(outputs, keras.config.epsilon()))


def distillation_loss(teacher_logits: tf.Tensor, logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """How far a student is from its teacher: T² KL(teacher || student) of softmax(logits / T), in nats, float32 [n].

    T² keeps the gradients' size independent of the temperature.

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    teacher_log, student_log = (tf.nn.log_softmax(it / temperature) for it in (teacher_logits, logits))
    return temperature**2 * tf.reduce_sum(tf.exp(teacher_log) * (teacher_log - student_log), axis=1)


def additional_loss(model: keras.Model) -> tf.Tensor | float:
    """What regularizers, activity regularizers and `add_loss` bring, of the last call of `model`; float32.

    Keras adds it to `loss` and `val_loss`, in training and in what it reports; so does the loop.
    """
    losses = model.losses
    return tf.add_n([tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses]) if losses else 0.0
