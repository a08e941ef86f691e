"""What a model costs: operations and parameters, memory, and the threads of a CPU."""
