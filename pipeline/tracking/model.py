"""The trained model in MLflow: loads there without the repository."""

import tempfile

from pipeline import models
from pipeline.evaluation import inference
from pipeline.records.record import Record
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.tracking import address, store
from pipeline.training import cifar10


def log(experiment: str, run_id: str, record: Record, params: dict[str, str]) -> None:
    """Logs the trained model whole or not at all: the run gets it last, and what broke off earlier is deleted.

    Raises:
        PipelineError: the model's file is damaged.
    """
    import_tensorflow()
    import cloudpickle  # MLflow's
    import keras
    import mlflow.tensorflow
    import numpy as np
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model
    from mlflow.models.signature import infer_signature

    trained = inference.load_model(record.model_file, record.run, record.training.model)
    client, environment = store.client(), record.training.environment
    for broken in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(broken.model_id)
    logged = client.create_logged_model(experiment, record.run, run_id, params=params)
    example = np.zeros((1, *cifar10.IMAGE_SHAPE), np.uint8)
    mlflow.set_tracking_uri(address.store_uri())
    keras.utils.disable_interactive_logging()  # MLflow tries the example out, with a progress bar
    cloudpickle.register_pickle_by_value(models)  # custom layers go with the model: no repository to import them from
    with tempfile.TemporaryDirectory() as folder:
        mlflow.tensorflow.save_model(
            trained,
            f"{folder}/model",
            mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            signature=infer_signature(example, np.zeros((1, cifar10.NUM_CLASSES), np.float32)),
            input_example=example,
            pip_requirements=[f"{name}=={environment[name]}" for name in ("tensorflow", "keras", "mlflow")],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
