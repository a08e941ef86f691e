"""What a run takes in memory: counted on the models that are loaded, or before any is, on tensors without memory."""
