"""The SPRec algorithm, free of any framework."""
