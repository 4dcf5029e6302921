"""The embedding rows of new tokens: initialization, distillation, attention sinks, and the lookup of trainable rows."""
