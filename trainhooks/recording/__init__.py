"""The live wing: what happens at a step of the loop, from the model to the sinks."""
