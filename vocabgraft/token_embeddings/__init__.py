"""The embedding rows of new tokens: initialization, distillation, attention sinks, training."""
