"""Use a finished run: predict new texts, explain labels, export the model."""
