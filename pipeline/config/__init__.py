"""params.yaml as typed, validated values."""
