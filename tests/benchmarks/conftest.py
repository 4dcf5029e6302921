"""The tiny grafts of the library's tests."""

from tests.vocabgraft.conftest import base_tokenizer, extended, graft, write_dataset

__all__ = ["base_tokenizer", "extended", "graft", "write_dataset"]
