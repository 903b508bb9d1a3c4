"""What a finished run is used for: predicting, explaining, exporting."""
