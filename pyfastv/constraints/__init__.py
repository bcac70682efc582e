"""What an answer has to follow: JSON schemas, regular expressions and choices, as grammars; and what is checked
behind."""
