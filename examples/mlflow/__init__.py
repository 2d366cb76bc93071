"""An ingest as a run of MLflow, and from a run back to the index that it made."""
