"""What an answer is worth: label parsing, exact match, macro-F1, ROUGE-L, intervals and tests."""
