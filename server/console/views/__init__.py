"""Read models: what each page shows, as queries and plain values; no rules, no HTML."""
