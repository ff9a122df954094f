"""The Jupyter server extension: a student's own slice, over REST."""
