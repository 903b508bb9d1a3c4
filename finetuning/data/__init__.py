"""From files to token ids: sources -> files -> text, labels, spans, pairs -> splits -> tokens."""
