"""`zoo pick`: find the most accurate model that meets a latency on this machine."""
