"""Hold learning tasks, presets, benchmarks and results; no other package imports this one."""
