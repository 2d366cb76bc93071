"""A tour in a notebook: documents, questions, a snapshot, a restore."""
