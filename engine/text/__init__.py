"""Text to token ids and back: tokenizers of every form, chat templates, incremental decoding."""
