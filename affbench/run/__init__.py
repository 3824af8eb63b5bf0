"""One run: planned, trained, evaluated, kept."""
