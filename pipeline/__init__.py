"""Small CIFAR-10 classifiers: fetched, trained, evaluated and compared by DVC, mirrored into MLflow."""
