"""From files to batches: records, tokenised and packed rows, a mixture whose order is a pure function. Knows no model."""
