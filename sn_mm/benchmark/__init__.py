"""What the benchmarks measure and on what: layers, models, inputs, and the measurements."""
